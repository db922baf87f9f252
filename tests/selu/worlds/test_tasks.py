"""Tasks are solvable, reproducible, and practice never begins like a probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from selu.config import TaskSettings, WorldSettings, scenes_of_split
from selu.errors import ConfigError, WorldError
from selu.records import Condition
from selu.worlds.actions import parse_action
from selu.worlds.base import holds
from selu.worlds.planner import solve
from selu.worlds.tasks import (
    THREE_STEPS,
    THREE_STEPS_LIMIT,
    frozen_tasks,
    generate_tasks,
    goal_of_instruction,
    kind_of_instruction,
    start_key,
)
from selu.worlds.thor import PlayerSimulator, ThorWorld

SETTINGS = WorldSettings()


@pytest.fixture(scope="module")
def world() -> ThorWorld:
    return ThorWorld(PlayerSimulator(SETTINGS), SETTINGS)


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others(world: ThorWorld) -> None:
    settings = TaskSettings(split="development")
    first, again, other = (generate_tasks(settings, world, seed, 14) for seed in (1, 1, 2))
    assert first == again
    assert {t.task_id for t in first}.isdisjoint(t.task_id for t in other)


def test_no_goal_holds_at_the_start_and_every_goal_can_be_reached(world: ThorWorld) -> None:
    kinds = ("pick_up", "open", "close", "toggle_on", "toggle_off", "put", "break", "slice", "two_step")
    for task in generate_tasks(TaskSettings(split="development", kinds=kinds), world, 7, 18):
        world.reset(options={"task": task})
        assert not holds(task.goal, world.oracle().facts), task.instruction
        solve(world)
        assert holds(task.goal, world.oracle().facts), task.instruction


def test_the_frozen_probes_lie_in_their_splits() -> None:
    for name, split, count in (("probe_a", "learning", 540), ("probe_b", "transfer", 270)):
        tasks = frozen_tasks(name)
        assert len(tasks) == count
        assert {t.scene for t in tasks} == set(scenes_of_split(split))
        assert len({t.task_id for t in tasks}) == count


def test_the_longer_tasks_are_of_three_steps_and_can_be_solved_within_their_limit() -> None:
    tasks = frozen_tasks(THREE_STEPS)
    assert {(t.kind, kind_of_instruction(t.instruction), len(t.goal)) for t in tasks} == {
        ("three_step", "three_step", 3)
    }
    assert {t.scene for t in tasks} == set(scenes_of_split("learning"))
    settings = WorldSettings(max_steps=THREE_STEPS_LIMIT)
    longer = ThorWorld(PlayerSimulator(settings), settings)
    for task in tasks[::30]:
        longer.reset(options={"task": task})
        assert not holds(task.goal, longer.oracle().facts)
        assert len(solve(longer)) <= THREE_STEPS_LIMIT
        assert holds(task.goal, longer.oracle().facts), task.instruction


def test_practice_never_begins_like_a_probe(world: ThorWorld) -> None:
    probe = {start_key(t) for t in frozen_tasks("probe_a")}
    practice = generate_tasks(TaskSettings(split="learning"), world, 0, 60)
    assert probe.isdisjoint(start_key(t) for t in practice)


def test_a_users_own_instructions_are_taken_as_they_are(world: ThorWorld, tmp_path: Path) -> None:
    listed = tmp_path / "own.txt"
    listed.write_text("# mine\nwater the plant, please\nopen the fridge\n")
    tasks = generate_tasks(TaskSettings(instructions=listed), world, 0, 4)
    assert [t.instruction for t in tasks] == ["water the plant, please", "open the fridge"] * 2
    # What the words say can be checked in the end; of the plant nothing is known.
    assert [t.goal for t in tasks] == [(), (Condition(predicate="open", object_type="Fridge"),)] * 2


class Losing(ThorWorld):
    """Is lost at some of its resets."""

    def __init__(self, at: set[int]) -> None:
        super().__init__(PlayerSimulator(SETTINGS), SETTINGS)
        self.at, self.resets = at, 0

    def reset(self, **given: Any) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        self.resets += 1
        if self.resets in self.at:
            raise WorldError("The simulator was lost.")
        return super().reset(**given)


def test_a_task_whose_world_is_lost_is_drawn_again(world: ThorWorld) -> None:
    settings = TaskSettings(split="development")
    losing = Losing({3, 4})
    assert generate_tasks(settings, losing, 1, 4, restarts=2) == generate_tasks(settings, world, 1, 4)
    with pytest.raises(WorldError, match="was lost"):
        generate_tasks(settings, Losing({3, 4}), 1, 4, restarts=1)


def test_a_planner_of_primitives_walks_by_single_steps(world: ThorWorld) -> None:
    settings = WorldSettings(skill_set="primitives", max_steps=40)
    walking = ThorWorld(PlayerSimulator(settings), settings)
    solved = 0
    for task in frozen_tasks("probe_b")[::30]:
        walking.reset(options={"task": task})
        assert all(parse_action(action, "primitives") for action in solve(walking)), task.instruction
        solved += holds(task.goal, walking.oracle().facts)
    assert solved >= 8


def test_an_empty_list_and_an_unknown_probe_are_one_sentence(world: ThorWorld, tmp_path: Path) -> None:
    empty = tmp_path / "none.txt"
    empty.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="no instruction"):
        generate_tasks(TaskSettings(instructions=empty), world, 0, 1)
    with pytest.raises(ConfigError, match="probe_a"):
        frozen_tasks("probe_z")


def test_a_share_of_instructions_names_what_is_not_there(world: ThorWorld) -> None:
    kinds = ("pick_up", "open", "toggle_off", "put", "two_step")
    plain = TaskSettings(split="development", kinds=kinds)
    spoiled = plain.model_copy(update={"unsolvable": 0.4})
    tasks = generate_tasks(spoiled, world, 3, 10)
    assert tasks == generate_tasks(spoiled, world, 3, 10)
    before = generate_tasks(plain, world, 3, 10)
    hopeless = []
    for task, other in zip(tasks, before, strict=True):
        world.reset(options={"task": task})
        there = {thing["objectType"] for thing in world.candidates()["metadata"]["objects"]}
        if task.goal[0].object_type not in there:
            hopeless.append(task)
            assert goal_of_instruction(task.instruction) == task.goal
            assert not holds(task.goal, world.oracle().facts)
            assert task.kind == kind_of_instruction(task.instruction)
        else:
            assert task == other
    assert len(hopeless) == 4
