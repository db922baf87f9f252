"""VirtualHome: its own client and engine, our homes and pictures, and what a simulator does wrong."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selu.config import RolloutSettings, Settings, TaskSettings, WorldSettings, load_settings, scenes_of_split
from selu.deeds import could_have_done, deeds_of
from selu.errors import ConfigError, WorldError
from selu.frames import FrameTable
from selu.player.virtualhome_homes import KINDS, home_graph
from selu.player.virtualhome_wheel import wheel_module
from selu.records import Condition, Setup, Task
from selu.rollout import NearMissPolicy, PlannerPolicy, Policy, RandomPolicy, SiblingPolicy, roll_out, shared_pool
from selu.rounds import Workspace
from selu.store import write_table
from selu.tasks.rollout import PolicyChoice, roll_out_shard
from selu.tasks.stages import Shard
from selu.testing import check_world
from selu.worlds.base import holds
from selu.worlds.planner import solve
from selu.worlds.registry import make_world
from selu.worlds.tasks import frozen_tasks, generate_tasks, goal_of_instruction, kind_of_instruction, start_key

CONFIG = Path(__file__).parents[2] / "configs" / "virtualhome.yaml"
SETTINGS = WorldSettings(name="virtualhome", skill_set="virtualhome")
START = Setup(spawn_seed=3, position=(2.0, 0.9, 2.0), rotation=90.0)
TASK = Task(task_id="0", scene="Home21", kind="own", instruction="sit on the sofa", setup=START)


def _is_installed() -> bool:
    try:
        wheel_module("evolving_graph.execution")
    except ConfigError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _is_installed(), reason="pip install --no-deps virtualhome==2.3.0")


def in_process() -> Any:
    from selu.worlds.virtualhome import in_process

    return in_process(SETTINGS)


@pytest.fixture(scope="module")
def world() -> Any:
    return in_process()


@pytest.fixture(scope="module")
def tasks(world: Any) -> list[Task]:
    kinds = load_settings(CONFIG).tasks.kinds
    return generate_tasks(TaskSettings(split="development", kinds=kinds), world, 3, 6)


def begin(world: Any, *actions: str, setup: Setup = START) -> tuple[Any, dict[str, Any]]:
    """The last frame and the facts after some actions from the start of :data:`TASK`."""
    frame, _ = world.reset(options={"task": TASK.model_copy(update={"setup": setup})})
    for action in actions:
        frame, *_ = world.step(action)
    return frame, world.oracle().facts


def test_it_keeps_the_contract() -> None:
    actions = ["Walk(Sofa)", "Sit(Sofa)", "StandUp", "Walk(Fridge)", "Open(Fridge)"]
    check_world(in_process, TASK, actions, max_steps=SETTINGS.max_steps)


def test_the_paper_s_tasks_and_more_are_drawn_and_solved_by_programs(world: Any, tasks: list[Task]) -> None:
    assert [task.instruction.split(" the ")[0] for task in tasks] == [
        "open", "grab", "sit on", "close", "switch on", "switch off",
    ]  # fmt: skip
    for task in tasks:
        world.reset(options={"task": task})
        assert not holds(task.goal, world.oracle().facts)
        assert solve(world)[-1] == "Done"
        assert holds(task.goal, world.oracle().facts), task.instruction
        assert goal_of_instruction(task.instruction) == task.goal
        assert kind_of_instruction(task.instruction) == task.kind


@pytest.mark.parametrize("policy", [NearMissPolicy(), SiblingPolicy()], ids=["near miss", "sibling"])
def test_a_hard_failure_never_succeeds(world: Any, tasks: list[Task], policy: Policy) -> None:
    made = roll_out(tasks[:3], range(3), policy, [world])
    assert not any(row.success for row in made.oracle_episodes)
    if policy.revision == "near-miss":
        assert all(episode.length < 3 for episode in made.episodes)


def test_its_actions_are_seen_by_the_critic_s_side(world: Any, tasks: list[Task]) -> None:
    grab, sit = tasks[1], tasks[2]
    made = roll_out([grab, sit], range(2), PlannerPolicy(), [world])
    for episode in made.episodes:
        steps = [step for step in made.steps if step.episode_id == episode.episode_id]
        deeds = deeds_of(steps, FrameTable(made.frames))
        assert could_have_done(episode.instruction, deeds) is True
    assert all(step.well_formed for step in roll_out([grab], [5], RandomPolicy(), [world]).steps)


def test_what_is_done_can_be_seen_and_is_known_to_the_oracle_alone(world: Any) -> None:
    shut, facts = begin(world, "Walk(Fridge)")
    assert "Fridge" in facts["closed"]
    ajar, facts = begin(world, "Walk(Fridge)", "Open(Fridge)")
    assert "Fridge" in facts["open"]
    assert not np.array_equal(shut, ajar)
    before, _ = begin(world, "Walk(Mug)")
    after, facts = begin(world, "Walk(Mug)", "Grab(Mug)")
    assert facts["held"] == ["Mug"]
    assert not np.array_equal(before, after)
    _, facts = begin(world, "Walk(Mug)", "Grab(Mug)", "Walk(Bed)", "PutBack(Bed)")
    assert facts["held"] == []
    assert ["Mug", "Bed"] in facts["inside"]


def test_who_sits_must_stand_up_and_the_seat_is_free_again(world: Any) -> None:
    _, facts = begin(world, "Walk(ArmChair)", "Sit(ArmChair)")
    assert ["Character", "ArmChair"] in facts["inside"]
    world.step("Walk(Fridge)")
    assert "is sitting" in world.oracle().error_message
    world.step("StandUp")
    assert not any(thing == "Character" for thing, _ in world.oracle().facts["inside"])
    for action in ("Walk(ArmChair)", "Sit(ArmChair)"):
        world.step(action)
    assert world.oracle().action_success


@pytest.mark.parametrize(
    ("actions", "says"),
    [
        (["Open(Fridge)"], "is not close to"),
        (["Walk(Fridge)", "Close(Fridge)"], "is not open"),
        (["Walk(Sofa)", "Grab(Sofa)"], "not grabbable"),
        (["Walk(Unicorn)"], "there is no Unicorn"),
        (["PutBack(Bed)"], "nothing is held"),
        (["StandUp"], "is not sitting"),
        (["Open(Fridge) please"], "not an action"),
    ],
)
def test_a_refusal_changes_nothing_and_is_for_the_oracle(world: Any, actions: list[str], says: str) -> None:
    before, _ = begin(world, *actions[:-1])
    after, *_, info = world.step(actions[-1])
    assert np.array_equal(before, after)
    assert says in world.oracle().error_message
    assert not world.oracle().action_success
    assert info == {}


def test_a_walk_goes_on_to_the_next_of_its_kind(world: Any) -> None:
    begin(world)
    places = []
    for _ in range(2):
        world.step("Walk(Cabinet)")
        places.append(world.oracle().facts["position"])
    assert places[0] != places[1]


def test_homes_are_drawn_by_their_number_and_have_the_paper_s_things() -> None:
    assert home_graph(5) == home_graph(5) != home_graph(6)
    for number in range(1, 31):
        graph = home_graph(number)
        classes = {node["class_name"] for node in graph["nodes"]}
        assert {"fridge", "sofa", "bed", "toilet"} <= classes
        placed = {edge["from_id"] for edge in graph["edges"]}
        assert placed == {node["id"] for node in graph["nodes"] if node["category"] != "Rooms"}
        boxes = [
            (np.array(n["bounding_box"]["center"]), np.array(n["bounding_box"]["size"]))
            for n in graph["nodes"]
            if n["category"] == "Furniture"
        ]
        for k, (centre, size) in enumerate(boxes):
            for other, its in boxes[k + 1 :]:
                apart = np.abs(centre - other)[[0, 2]] - (size + its)[[0, 2]] / 2
                assert apart.max() > -1e-6, f"two pieces of furniture stand in one place in home {number}"
    assert len({kind.class_name for kind in KINDS.values()}) == len(KINDS)


def test_probes_lie_in_homes_of_their_own(world: Any) -> None:
    for name, split, count in (("virtualhome_probe_a", "learning", 120), ("virtualhome_probe_b", "transfer", 60)):
        probe = frozen_tasks(name)
        assert len({task.task_id for task in probe}) == count
        homes = {f"Home{scene.removeprefix('FloorPlan')}" for scene in scenes_of_split(split)}  # type: ignore[arg-type]
        assert {task.scene for task in probe} <= homes
    for task in frozen_tasks("virtualhome_probe_a")[::40]:
        world.reset(options={"task": task})
        solve(world)
        assert holds(task.goal, world.oracle().facts), task.instruction


def test_what_is_practised_begins_otherwise_than_the_probe(world: Any) -> None:
    reserved = {start_key(task) for task in frozen_tasks("virtualhome_probe_a")}
    drawn = generate_tasks(TaskSettings(kinds=("sit",)), world, 20_261_120, 2)
    assert not reserved & {start_key(task) for task in drawn}


# --- the protocol -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served() -> Iterator[Any]:
    made = make_world(SETTINGS)
    yield made
    made.close()


def test_the_embedded_player_serves_the_same_bytes_over_http(served: Any, world: Any) -> None:
    for action in ((), ("Walk(Mug)", "Grab(Mug)"), ("Walk(Bed)", "Sit(Bed)")):
        one, facts = begin(served, *action)
        other, its = begin(world, *action)
        assert np.array_equal(one, other)
        assert facts == its


def test_a_player_that_is_gone_is_a_world_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_world(SETTINGS)
    made.reset(options={"task": TASK})
    made.close()
    made.close()
    with pytest.raises(WorldError, match="simulator was lost"):
        made.step("Walk(Fridge)")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_an_episode_whose_player_is_lost_is_played_again_and_recorded_once(
    world: Any, tasks: list[Task], how: signal.Signals
) -> None:
    class Losing(PlannerPolicy):
        """Loses the player in the middle of an episode, once."""

        lost = False

        def act(self, situations: Any) -> Any:
            if len(situations[0].history) == 1 and not self.lost:
                self.lost = True
                os.kill(alone.client._player.pid, how)
            return super().act(situations)

    undisturbed = roll_out(tasks[:1], [0], PlannerPolicy(), [world])
    alone: Any = make_world(SETTINGS.model_copy(update={"step_timeout": 3.0}))
    try:
        first = alone.client._player.pid
        disturbed = roll_out(tasks[:1], [0], Losing(), [alone], restarts=1)
        assert alone.client._player.pid != first
    finally:
        alone.close()
    assert disturbed.frames == undisturbed.frames
    assert disturbed.steps == undisturbed.steps


@pytest.fixture
def theirs() -> Iterator[tuple[WorldSettings, Any]]:
    """Settings that name a running simulator of somebody else's, and its process."""
    from selu.worlds.virtualhome import _start_player, stop

    player, port = _start_player(SETTINGS)
    yield SETTINGS.model_copy(update={"server": f"127.0.0.1:{port}", "max_steps": 2}), player
    stop(player)


def test_whose_simulator_it_was_is_stored_with_the_episodes(
    theirs: tuple[WorldSettings, Any], tasks: list[Task], tmp_path: Path
) -> None:
    settings, _ = theirs
    workspace = Workspace(data_dir=tmp_path)
    with workspace.store().create_oracle("oracle_tasks", "0" * 64, {"stage": "tasks"}) as draft:
        write_table(draft.path / "tasks.parquet", tasks[:1], Task)
    rollout, shard = RolloutSettings(players=1), Shard(stage="rollout", stop=1)
    made = roll_out_shard.fn(workspace, shard, draft.ref, PolicyChoice(kind="random"), settings, rollout, 0)
    shared_pool(settings).close()
    stored = json.loads((workspace.store().path(made.ref) / "world.json").read_text())
    assert stored["simulator"]["server"] == settings.server
    assert stored["simulator"]["client"] == "virtualhome 2.3.0"


def test_somebody_else_s_simulator_is_not_started_again(theirs: tuple[WorldSettings, Any], tasks: list[Task]) -> None:
    settings, player = theirs
    made = make_world(settings)
    player.kill()
    player.wait()
    with pytest.raises(WorldError, match=r"simulator was lost.*It was try 2 of 2"):
        roll_out(tasks[:1], [0], PlannerPolicy(), [made], restarts=1)


def test_a_player_that_does_not_start_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from selu.worlds import virtualhome

    start, starts = virtualhome._start_player, []

    def reluctant(settings: WorldSettings) -> Any:
        starts.append(settings)
        if len(starts) <= 2:
            raise WorldError("The embedded VirtualHome player did not start.")
        return start(settings)

    monkeypatch.setattr(virtualhome, "_start_player", reluctant)
    with pytest.raises(WorldError, match="did not start"):
        make_world(SETTINGS.model_copy(update={"restarts": 1}))
    starts.clear()
    make_world(SETTINGS.model_copy(update={"restarts": 2})).close()
    assert len(starts) == 3


def test_a_simulator_that_nobody_started_is_one_sentence() -> None:
    settings = SETTINGS.model_copy(update={"server": "127.0.0.1:9", "start_timeout": 0.5})
    with pytest.raises(WorldError, match=r"No VirtualHome simulator answers at 127\.0\.0\.1:9"):
        make_world(settings)


@pytest.mark.parametrize(
    ("action", "reply", "says"),
    [
        ("camera_image", {"message_list": ["grey"]}, "of one colour although it reported success"),
        ("camera_image", {"message_list": []}, "refused to draw a picture"),
        ("camera_image", {"message_list": ["bm9uZQ=="]}, "cannot be read"),
        ("environment_graph", {"message": "[]"}, "no nodes and edges"),
        ("environment_graph", {"message": "<html>"}, "simulator was lost while it was asked to environment_graph"),
        ("expand_scene", {"success": False, "message": "no place"}, "refused to place the small things: no place"),
        ("environment", {"success": False}, "refused to load home 21"),
    ],
)
def test_garbage_from_a_simulator_is_a_world_error(action: str, reply: dict[str, Any], says: str) -> None:
    import base64
    import io

    from PIL import Image

    grey = io.BytesIO()
    Image.new("RGB", (96, 96), (128, 128, 128)).save(grey, format="PNG")
    if reply.get("message_list") == ["grey"]:
        reply = {"message_list": [base64.b64encode(grey.getvalue()).decode()]}
    made = in_process()
    communication = made.client._communication
    answer = communication.post_command
    communication.post_command = lambda request, repeat=False: (
        answer(request) | (reply if request["action"] == action else {})
    )
    with pytest.raises(WorldError, match=says):
        made.reset(options={"task": TASK})


def test_the_player_refuses_what_it_cannot_do_and_goes_on() -> None:
    from selu.player.virtualhome import VirtualHomePlayer

    player = VirtualHomePlayer()
    for request in (
        {"action": "dance"},
        {"action": "camera_image", "intParams": [0], "stringParams": ['{"image_width": 96, "image_height": 96}']},
        {"action": "render_script", "stringParams": ["{}", "<char0> [walk] <fridge> (2)"]},
    ):
        answer = player.answer(request)
        assert not answer["success"]
        assert answer["message"]
    assert json.loads(player.answer({"action": "environment_graph"})["message"])["nodes"]


# --- settings ---------------------------------------------------------------------------------------------------------


def test_its_config_is_whole() -> None:
    settings = load_settings(CONFIG)
    assert settings.world == SETTINGS
    assert settings.world.embedded
    assert settings.evaluation.actor_episodes_a <= len(frozen_tasks("virtualhome_probe_a"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["world.name=virtualhome"], "set both to virtualhome"),
        (["world.skill_set=virtualhome"], "set both to virtualhome"),
        (["world.server=127.0.0.1:8080"], "set world.name=virtualhome too"),
        (
            ["world.name=virtualhome", "world.skill_set=virtualhome", "world.server=127.0.0.1:8080"],
            "one simulator with one home in it, but rollout.players=8 would drive it at once; set rollout.players=1",
        ),
        (
            [
                "world.name=virtualhome",
                "world.skill_set=virtualhome",
                "world.server=127.0.0.1:8080",
                "rollout.players=1",
                "orchestration.task_runner=dask",
            ],
            "task_runner=dask would drive it from several processes; set it to threads",
        ),
        (["world.name=virtualhome", "world.skill_set=virtualhome", "world.commit_id=x"], "is about AI2-THOR"),
        (["world.name=virtualhome", "world.skill_set=virtualhome", "tasks.unsolvable=0.5"], "leave it out"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_settings(None, overrides)


def test_sitting_is_no_task_of_thor() -> None:
    from selu.worlds.thor import PlayerSimulator, ThorWorld

    settings = Settings().world
    with pytest.raises(ConfigError, match=r"`sit` cannot be drawn in this world: it knows pick_up, open"):
        generate_tasks(TaskSettings(kinds=("sit",)), ThorWorld(PlayerSimulator(settings), settings), 1, 1)


def test_a_scene_of_ithor_is_none_of_its(world: Any) -> None:
    with pytest.raises(ConfigError, match="this world has its own"):
        generate_tasks(TaskSettings(scenes=("FloorPlan21",)), world, 1, 1)


def test_without_the_wheel_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps virtualhome==2\.3\.0"):
        wheel_module("evolving_graph.execution")


def test_the_wheel_leaves_neither_paths_nor_a_seed_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    for name in [name for name in sys.modules if name.startswith("evolving_graph")]:
        monkeypatch.delitem(sys.modules, name)
    drawn, paths = random.getstate(), list(sys.path)
    wheel_module("evolving_graph.utils")
    assert (random.getstate(), sys.path) == (drawn, paths)


def test_sitting_is_a_condition_like_any_other() -> None:
    condition = Condition(predicate="inside", object_type="Character", receptacle_type="Sofa")
    assert goal_of_instruction("sit on the sofa") == (condition,)
    assert goal_of_instruction("grab the mug and then switch on the washing machine") == (
        Condition(predicate="held", object_type="Mug"),
        Condition(predicate="on", object_type="WashingMachine"),
    )
