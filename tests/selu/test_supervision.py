"""Players that misbehave, before the real Controller: each is found in time, ended, and its episode played again."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selu.config import RolloutSettings, WorldSettings
from selu.errors import WorldError
from selu.models.base import Reply
from selu.records import Setup, Task
from selu.rollout import Policy, Recording, Situation, WorldPool, roll_out, shared_pool
from selu.rounds import Workspace
from selu.store import write_table
from selu.tasks.rollout import PolicyChoice, roll_out_shard
from selu.tasks.stages import Shard
from selu.worlds import make_world
from selu.worlds.supervision import suspicion
from selu.worlds.thor import ControllerSimulator, Observation

PLAYER = Path(__file__).parents[1] / "misbehaving_player.py"
UNHURRIED = {"start_timeout": 60.0, "step_timeout": 60.0}
"""Seconds; whoever misbehaves and is found long before was not found by waiting."""
TASKS = [
    Task(
        task_id=f"{number:016x}",
        scene="FloorPlan21",
        kind="open",
        instruction="open the fridge",
        setup=Setup(spawn_seed=number, position=(0.5 * number, 0.9, 0.0), rotation=90.0),
    )
    for number in range(3)
]


def settings(mode: str, **changes: Any) -> WorldSettings:
    words = [sys.executable, str(PLAYER), *shlex.split(mode)]
    given: dict[str, Any] = {**UNHURRIED, "restarts": 0, "max_steps": 3, **changes}
    return WorldSettings(local_executable_path=shlex.join(words), **given)


def recorded(file: Path) -> list[int]:
    # One that was ended before it came to write is not there.
    return [int(word) for word in file.read_text().split()] if file.exists() else []


def assert_gone(processes: Sequence[int], within: float = 5.0) -> None:
    until = time.monotonic() + within
    while left := [process for process in processes if _runs(process)]:
        assert time.monotonic() < until, f"{left} still run"
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


class Turning:
    """Turns left whatever it sees."""

    revision = "turning"
    scripted = False
    by_parts = False

    def act(self, situations: Sequence[Situation]) -> list[Reply]:
        return [Reply("RotateLeft", -0.5) for _ in situations]


# --- found in time, and ended ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "patience", "reason"),
    [
        ("hangs", {"start_timeout": 3.0}, "did not answer within 3 s"),
        ("says_nothing", {"start_timeout": 3.0}, "did not answer within 3 s"),
        ("never_reads", {"step_timeout": 3.0}, "did not answer within 3 s"),
        ("dies_before_its_pipe", {}, "ended with exit code 3"),
        ("dies_unheard", {}, "ended with exit code 4"),
    ],
)
def test_a_player_that_does_not_start(mode: str, patience: dict[str, float], reason: str, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(WorldError, match=f"did not start .*{reason}.*selu doctor"):
        make_world(settings(f"{mode} --record {tmp_path}/processes", **patience))
    assert time.monotonic() - started < 40
    assert_gone(recorded(tmp_path / "processes"))


@pytest.mark.parametrize(
    ("mode", "patience", "reason"),
    [
        ("dies", {}, "ended with exit code 7"),
        ("dies_speaking", {}, "ended with exit code 7"),
        ("crashes", {}, "ended with exit code 139"),
        ("stalls", {"step_timeout": 5.0}, "did not answer within 5 s"),
        ("trickles", {"step_timeout": 5.0}, "did not answer within 5 s"),
        ("never_ends", {"step_timeout": 5.0}, "did not answer within 5 s"),
        ("garbage", {}, "garbage"),
        ("announces_4_GB", {}, "garbage"),
        ("wrong_number", {}, "garbage"),
        ("lacks_objects", {}, "garbage"),
        ("lacks_the_rest", {}, "garbage"),
        ("small_picture", {}, "garbage"),
        ("blank", {}, "one colour"),
        ("stale", {}, "stayed the same"),
    ],
)
def test_a_player_that_is_lost_in_a_step(mode: str, patience: dict[str, float], reason: str, tmp_path: Path) -> None:
    simulator = ControllerSimulator(settings(f"{mode} --record {tmp_path}/processes", **patience))
    try:
        simulator.reset("FloorPlan21")
        started = time.monotonic()
        with pytest.raises(WorldError, match=f"lost in RotateLeft: .*{reason}"):
            simulator.step("RotateLeft", degrees=45)
        assert time.monotonic() - started < 40
        processes = recorded(tmp_path / "processes")
        assert len(processes) == 2
        assert_gone(processes)
        with pytest.raises(WorldError, match="reset starts it again"):
            simulator.step("RotateRight", degrees=45)
    finally:
        simulator.close()


def test_a_lost_player_comes_up_again_with_a_reset(tmp_path: Path) -> None:
    simulator = ControllerSimulator(settings(f"dies --record {tmp_path}/processes"))
    first = simulator.reset("FloorPlan21").frame
    with pytest.raises(WorldError, match="lost"):
        simulator.step("RotateLeft", degrees=45)
    assert (simulator.reset("FloorPlan21").frame == first).all()
    simulator.close()
    assert len(recorded(tmp_path / "processes")) == 4  # two players, each below its guardian
    assert_gone(recorded(tmp_path / "processes"))


def test_a_start_that_fails_is_tried_again(tmp_path: Path) -> None:
    world = make_world(settings(f"dies_before_its_pipe --once {tmp_path}/once", restarts=1))
    assert world.reset(options={"task": TASKS[0]})[0].shape == (96, 96, 3)
    world.close()


# --- nothing is left running -----------------------------------------------------------------------------------------


def test_children_of_a_player_end_with_it(tmp_path: Path) -> None:
    simulator = ControllerSimulator(settings(f"leaks --record {tmp_path}/processes"))
    processes = recorded(tmp_path / "processes")
    assert len(processes) == 4
    assert all(map(_runs, processes))
    simulator.close()
    assert_gone(processes)


@pytest.mark.parametrize("end", ["sys.exit()", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["exit", "killed"])
def test_a_player_ends_with_its_client(end: str, tmp_path: Path) -> None:
    player = settings(f"leaks --record {tmp_path}/processes")
    client = f"""
        import os, signal, sys
        from selu.config import WorldSettings
        from selu.worlds import make_world
        world = make_world(WorldSettings.model_validate_json({player.model_dump_json()!r}))
        {end}
    """
    environment = {**os.environ, "PYTHONPATH": str(PLAYER.parents[1])}
    subprocess.run([sys.executable, "-c", textwrap.dedent(client)], env=environment, check=False, timeout=120)
    *kept, left_the_session = recorded(tmp_path / "processes")
    if "exit" in end:
        kept.append(left_the_session)
    elif _runs(left_the_session):
        os.kill(left_the_session, signal.SIGKILL)
    assert_gone(kept)


# --- what is known of it ---------------------------------------------------------------------------------------------


def test_the_simulator_s_build_and_settings_are_stored_with_the_episodes(tmp_path: Path) -> None:
    launcher = tmp_path / "thor.x86_64"
    launcher.write_text(f'#!/bin/sh\n{sys.executable} {PLAYER} behaves --record {tmp_path}/processes "$@"\n')
    launcher.chmod(0o755)
    (tmp_path / "thor_Data").mkdir()
    (tmp_path / "thor_Data" / "boot.config").write_text("vr-enabled=0\nbuild-guid=2f1e\n")
    world = WorldSettings(local_executable_path=str(launcher), quality="High", max_steps=2, **UNHURRIED)

    workspace = Workspace(data_dir=tmp_path / "data")
    with workspace.store().create_oracle("oracle_tasks", "0" * 64, {"stage": "tasks"}) as draft:
        write_table(draft.path / "tasks.parquet", TASKS, Task)
    rollout, shard = RolloutSettings(players=1), Shard(stage="rollout", stop=2)
    made = roll_out_shard.fn(workspace, shard, draft.ref, PolicyChoice(kind="random"), world, rollout, 0)
    shared_pool(world).close()

    stored = json.loads((workspace.store().path(made.ref) / "world.json").read_text())
    assert stored["simulator"]["build"]["build_guid"] == "2f1e"
    told = stored["simulator"]["arguments"]
    assert (told["quality"], told["width"], told["fieldOfView"], told["gridSize"]) == ("High", 96, 75.0, 0.25)
    assert told["fixedDeltaTime"] == 0.02
    assert stored["settings"]["visibility_distance"] == 1.5
    assert_gone(recorded(tmp_path / "processes"))


# --- the episode is played again -------------------------------------------------------------------------------------


def play(mode: str, policy: Policy, **changes: Any) -> Recording:
    given = settings(mode, **changes)
    pool = WorldPool(given)
    try:
        with pool.worlds(2) as worlds:
            return roll_out(TASKS, range(3), policy, worlds, restarts=given.restarts)
    finally:
        pool.close()


@pytest.fixture(scope="module")
def undisturbed() -> Recording:
    return play("behaves", Turning())


@pytest.mark.parametrize("mode", ["dies", "blank", "garbage --at TeleportFull", "crashes --at GetReachablePositions"])
def test_a_repeated_episode_is_as_if_nothing_had_been(
    mode: str, undisturbed: Recording, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = play(f"{mode} --once {tmp_path}/once", Turning(), restarts=1)
    assert caplog.text.count("is played again from its start") == 1
    assert len({frame.image for frame in made.frames}) > 3
    assert made == undisturbed


def test_an_episode_that_always_loses_its_world_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"exit code 7.* try 2 of 2 to play task .*; see `selu doctor`"):
        play(f"dies --record {tmp_path}/processes", Turning(), restarts=1)
    assert_gone(recorded(tmp_path / "processes"))


def _seen(colour: int, areas: dict[str, int], visible: int, degrees: float = 0.0) -> Observation:
    objects = [{"objectId": f"Thing|{n}", "visible": n < visible} for n in range(5)]
    pose = {"rotation": {"y": degrees}, "position": {"x": 0, "y": 0, "z": 0}, "cameraHorizon": 0}
    metadata = {"objects": objects, "inventoryObjects": [], "agent": pose}
    return Observation(np.full((4, 4, 3), colour, np.uint8), metadata, areas)


def test_one_large_thing_all_over_the_picture_is_no_fault() -> None:
    fridge = _seen(200, {"Fridge|1": 16}, visible=4)
    assert suspicion(None, fridge) is None, "what is visible behind or inside it covers no pixel"
    assert suspicion(fridge, _seen(200, {"Fridge|1": 16}, visible=1, degrees=45)) is None


def test_one_colour_is_a_fault_where_several_things_would_be_seen() -> None:
    several = {"Fridge|1": 8, "Mug|1": 4, "Sink|1": 4}
    assert "of one colour with 3 objects in view" in str(suspicion(None, _seen(128, several, visible=3)))
    assert "of one colour with 4 objects in view" in str(suspicion(None, _seen(128, {}, visible=4)))
