"""The AI2-THOR adapter, driven by the real Controller before the embedded player."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from selu.config import TaskSettings, WorldSettings
from selu.errors import ConfigError, TerminalError, WorldError
from selu.player.household import Household, Outcome
from selu.player.server import Player
from selu.records import Task
from selu.worlds import World, make_world
from selu.worlds.planner import solve
from selu.worlds.tasks import generate_tasks
from selu.worlds.thor import Observation, PlayerSimulator, ThorWorld

SETTINGS = WorldSettings()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = make_world(SETTINGS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    world = ThorWorld(PlayerSimulator(SETTINGS), SETTINGS)
    return generate_tasks(TaskSettings(split="development"), world, 3, 7)


def test_the_planner_solves_tasks_through_the_controller(world: World, tasks: list[Task]) -> None:
    for task in tasks:
        frame, info = world.reset(options={"task": task})
        assert frame.shape == (96, 96, 3)
        assert frame.dtype == np.uint8
        assert info == {}
        assert solve(world)[-1] == "Done"
        assert set(world.oracle().facts)  # and the goal holds:
        from selu.worlds.base import holds

        assert holds(task.goal, world.oracle().facts), task.instruction


def test_the_controller_and_the_player_in_process_give_the_same_bytes(world: World, tasks: list[Task]) -> None:
    inside = ThorWorld(PlayerSimulator(SETTINGS), SETTINGS)
    for task in tasks[:3]:
        first, _ = world.reset(options={"task": task})
        second, _ = inside.reset(options={"task": task})
        assert np.array_equal(first, second)
        for action in ("RotateLeft", "MoveAhead", "Approach(CounterTop)", "LookDown", "Open(Drawer)", "RotateRight"):
            one, other = world.step(action)[0], inside.step(action)[0]
            assert np.array_equal(one, other), action
            assert world.oracle() == inside.oracle(), action


def test_a_room_prepared_without_pictures_is_the_same_room(world: World, tasks: list[Task]) -> None:
    class Watched(PlayerSimulator):
        def prepare(self, action: str, **arguments: Any) -> None:
            self.step(action, **arguments)

    watched = ThorWorld(Watched(SETTINGS), SETTINGS)
    for task in tasks:
        assert np.array_equal(world.reset(options={"task": task})[0], watched.reset(options={"task": task})[0])
        assert world.candidates()["metadata"]["objects"] == watched.candidates()["metadata"]["objects"]


def test_where_nobody_looks_the_player_sends_no_picture() -> None:
    player = Player(Household(96, 96))
    player.obey({"action": "Initialize", "sequenceId": 0, "renderInstanceSegmentation": True})
    seen, unseen = (player.message("Initialize", Outcome(), looking=looking) for looking in (True, False))
    assert len(unseen) + 96 * 96 * (3 + 4) < len(seen)


class RealBuild(PlayerSimulator):
    """Tells where one can stand as AI2-THOR's own builds do: by a search from where the agent stands, or not at all."""

    def __init__(self, settings: WorldSettings) -> None:
        super().__init__(settings)
        self.moved = False

    def reset(self, scene: str) -> Observation:
        self.moved = False
        return super().reset(scene)

    def step(self, action: str, **arguments: Any) -> Observation:
        seen = super().step(action, **arguments)
        self.moved = self.moved or action == "TeleportFull"
        if action == "GetReachablePositions" and self.moved:
            said = {"lastActionSuccess": False, "actionReturn": None, "errorMessage": "beyond the scene bounds"}
            return dataclasses.replace(seen, metadata={**seen.metadata, **said})
        return seen


def test_a_real_build_is_asked_where_one_can_stand_before_it_is_moved(tasks: list[Task]) -> None:
    build = WorldSettings(local_executable_path="a build")
    world = ThorWorld(RealBuild(build), build)
    assert generate_tasks(TaskSettings(split="development"), world, 3, 2) == tasks[:2]
    unasked = ThorWorld(RealBuild(SETTINGS), SETTINGS)
    unasked.reset(options={"task": tasks[0]})
    assert not unasked.oracle().error_message
    unasked.step("Approach(Fridge)")
    assert not unasked.oracle().action_success, "nowhere to walk to"
    with pytest.raises(TerminalError, match=rf"where one can stand in {tasks[0].scene} \(beyond the scene bounds\)"):
        unasked.candidates()


def test_an_episode_ends_on_done_or_at_the_limit_and_never_at_the_goal(world: World, tasks: list[Task]) -> None:
    task = tasks[0]
    world.reset(options={"task": task})
    ends = [world.step("RotateLeft")[2:4] for _ in range(SETTINGS.max_steps)]
    assert ends == [(False, False)] * (SETTINGS.max_steps - 1) + [(False, True)]

    world.reset(options={"task": task})
    for action in solve_without_done(world):
        assert world.step(action)[2:4] == (False, False)
    assert world.step("Done")[2:4] == (True, False)


def solve_without_done(world: World) -> list[str]:
    task = world.task
    actions = solve(world)[:-1]
    world.reset(options={"task": task})
    return actions


def test_no_reward_and_no_info_ever(world: World, tasks: list[Task]) -> None:
    world.reset(options={"task": tasks[1]})
    for action in (*solve_without_done(world), "Done"):
        _, reward, _, _, info = world.step(action)
        assert reward == 0.0
        assert info == {}


def test_a_malformed_action_is_a_step_that_does_nothing(world: World, tasks: list[Task]) -> None:
    before, _ = world.reset(options={"task": tasks[0]})
    after, _, terminated, truncated, _ = world.step("please open the fridge")
    assert np.array_equal(before, after)
    assert not terminated
    assert not truncated
    assert not world.oracle().action_success


def test_several_players_run_side_by_side(tasks: list[Task]) -> None:
    worlds = [make_world(SETTINGS) for _ in range(3)]
    try:
        frames = [w.reset(options={"task": t})[0] for w, t in zip(worlds, tasks[:3], strict=True)]
        again = [w.reset(options={"task": t})[0] for w, t in zip(worlds, tasks[:3], strict=True)]
        assert all(np.array_equal(a, b) for a, b in zip(frames, again, strict=True))
    finally:
        for w in worlds:
            w.close()


def test_reset_without_a_task_says_what_it_needs(world: World) -> None:
    with pytest.raises(ConfigError, match="task"):
        world.reset()


def test_a_player_that_does_not_start_is_one_sentence() -> None:
    settings = SETTINGS.model_copy(update={"local_executable_path": "/does/not/exist"})
    with pytest.raises(WorldError, match="did not start"):
        make_world(settings)
