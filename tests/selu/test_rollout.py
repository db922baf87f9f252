"""Rolling out: whole recordings, the truth apart, the same whatever ran beside it."""

from __future__ import annotations

import json

import pytest

from selu.config import TaskSettings, WorldSettings
from selu.records import Task
from selu.rollout import PlannerPolicy, RandomPolicy, roll_out
from selu.worlds.tasks import generate_tasks
from selu.worlds.thor import PlayerSimulator, ThorWorld

SETTINGS = WorldSettings()


def worlds(count: int) -> list[ThorWorld]:
    return [ThorWorld(PlayerSimulator(SETTINGS), SETTINGS) for _ in range(count)]


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return generate_tasks(TaskSettings(split="development"), worlds(1)[0], 11, 7)


def test_frames_steps_and_truth_line_up(tasks: list[Task]) -> None:
    made = roll_out(tasks, range(7), PlannerPolicy(noise=0.3), worlds(3))
    assert [e.task_id for e in made.episodes] == [t.task_id for t in tasks]
    for episode in made.episodes:
        steps = [s for s in made.steps if s.episode_id == episode.episode_id]
        frames = [f for f in made.frames if f.episode_id == episode.episode_id]
        truth = [o for o in made.oracle_steps if o.episode_id == episode.episode_id]
        assert [s.step for s in steps] == list(range(episode.length))
        assert [f.frame_index for f in frames] == [o.frame_index for o in truth] == list(range(episode.length + 1))
        assert (episode.finish_reason == "done") == (steps[-1].action == "Done")
    success = {o.episode_id: o.success for o in made.oracle_episodes}
    last = {o.episode_id: o.goal_holds for o in made.oracle_steps}
    assert success == last


def test_the_planner_without_noise_always_succeeds(tasks: list[Task]) -> None:
    made = roll_out(tasks, range(7), PlannerPolicy(), worlds(2))
    assert all(o.success for o in made.oracle_episodes)


def test_a_recording_does_not_depend_on_how_many_worlds_ran(tasks: list[Task]) -> None:
    one, three = (roll_out(tasks, range(7), RandomPolicy(), worlds(n)) for n in (1, 3))
    assert one == three


def test_what_was_lived_holds_no_truth(tasks: list[Task]) -> None:
    made = roll_out(tasks[:3], range(3), PlannerPolicy(), worlds(1))
    lived = json.dumps([r.model_dump(mode="json", exclude={"image"}) for r in (*made.episodes, *made.steps)])
    for word in ("success", "goal", "error", "visible", "position", "reward"):
        assert word not in lived
