"""Rolling out: whole recordings, the truth apart, the same whatever ran beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest

import selu.rollout
from selu.config import TaskSettings, WorldSettings
from selu.errors import TerminalError, WorldError
from selu.frames import is_interaction
from selu.memory import Memory
from selu.models.base import Prompt
from selu.prompting import act_prompt
from selu.records import Task
from selu.rollout import (
    ActorPolicy,
    NearMissPolicy,
    PlannerPolicy,
    Policy,
    RandomPolicy,
    SiblingPolicy,
    Situation,
    WorldPool,
    roll_out,
    shared_pool,
)
from selu.worlds.base import PREDICATES, OracleState
from selu.worlds.base import Frame as Picture
from selu.worlds.tasks import generate_tasks
from selu.worlds.thor import PlayerSimulator, ThorWorld
from tests.scripted_model import ScriptedModel

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


@pytest.mark.parametrize("policy", [NearMissPolicy(), SiblingPolicy()], ids=["near miss", "sibling"])
def test_a_hard_failure_looks_like_work_and_never_succeeds(tasks: list[Task], policy: NearMissPolicy) -> None:
    made = roll_out(tasks, range(7), policy, worlds(1))
    assert not any(o.success for o in made.oracle_episodes)
    actions = [[s.action for s in made.steps if s.episode_id == e.episode_id] for e in made.episodes]
    if policy.revision == "near-miss":
        solved = roll_out(tasks, range(7), PlannerPolicy(), worlds(1))
        for episode, near in zip(solved.episodes, actions, strict=True):
            played = [s.action for s in solved.steps if s.episode_id == episode.episode_id]
            assert near == [*played[: len(near) - 1], "Done"]
            assert is_interaction(played[len(near) - 1])
    else:
        assert sum(any(is_interaction(action) for action in some) for some in actions) >= 4


def test_without_a_goal_nobody_knows_whether_it_succeeded(tasks: list[Task]) -> None:
    made = roll_out([tasks[0].model_copy(update={"goal": ()})], [0], RandomPolicy(), worlds(1))
    assert [o.success for o in made.oracle_episodes] == [None]


def test_what_the_skill_set_lacks_is_no_action(tasks: list[Task]) -> None:
    settings = WorldSettings(skill_set="primitives", max_steps=2)
    world = ThorWorld(PlayerSimulator(settings), settings)
    actor = ActorPolicy(Repeating("Approach(Fridge)"), temperature=0.0, max_new_tokens=4, memory=Memory(history=0))
    made = roll_out(tasks[:1], [0], actor, [world])
    assert [s.well_formed for s in made.steps] == [False, False]


def test_a_recording_does_not_depend_on_how_many_worlds_ran(tasks: list[Task]) -> None:
    one, three = (roll_out(tasks, range(7), RandomPolicy(), worlds(n)) for n in (1, 3))
    assert one == three


class Repeating(ScriptedModel):
    """An actor that says the same whatever it is shown."""

    def __init__(self, action: str) -> None:
        super().__init__({})
        self.action = action

    def _answer(self, prompt: Prompt) -> tuple[str, float]:
        return self.action, 0.5


class Obeying(ScriptedModel):
    """An actor that turns as it is told, and says Done when it sees in its own history that it did."""

    def _answer(self, prompt: Prompt) -> tuple[str, float]:
        told = "RotateRight" if "turn right" in prompt.text else "RotateLeft"
        return ("Done" if prompt.text.count(told) else told), 0.5


def test_in_practice_several_steps_are_put_to_the_actor_one_by_one(tasks: list[Task]) -> None:
    task = tasks[0].model_copy(update={"instruction": "turn right and then turn left"})
    for by_parts, played in ((True, ["RotateRight", "RotateLeft", "Done"]), (False, ["RotateRight", "Done"])):
        actor = ActorPolicy(Obeying({}), temperature=0.0, max_new_tokens=4, memory=Memory(history=4), by_parts=by_parts)
        made = roll_out([task], [0], actor, worlds(1))
        assert [step.action for step in made.steps] == played
        assert [episode.instruction for episode in made.episodes] == [task.instruction]
        last = made.steps[-1].prompt
        assert last == act_prompt("turn left" if by_parts else task.instruction, played[:-1])


@pytest.mark.parametrize(
    ("remember", "remembered"),
    [("last", ("RotateLeft", "RotateLeft")), ("interactions", ("Open(Fridge)", "RotateLeft"))],
)
def test_the_actor_reads_what_it_remembers(
    remember: Literal["last", "interactions"], remembered: tuple[str, ...]
) -> None:
    memory = Memory(history=2, remember=remember)
    actor = ActorPolicy(Repeating("Done"), temperature=0.0, max_new_tokens=4, memory=memory)
    done = ("Open(Fridge)", "RotateLeft", "RotateLeft")
    situation = Situation("close the fridge", np.zeros((4, 4, 3), np.uint8), done, 0, None)
    assert actor.prompt(situation).text == act_prompt("close the fridge", remembered)


@pytest.mark.parametrize("who", ["planner", "actor"])
def test_what_was_lived_holds_no_truth(tasks: list[Task], who: str) -> None:
    actor = ActorPolicy(Repeating("RotateRight"), temperature=0.0, max_new_tokens=4, memory=Memory(history=3))
    policy: Policy = PlannerPolicy() if who == "planner" else actor
    made = roll_out(tasks[:3], range(3), policy, worlds(1))
    if who == "actor":
        assert {s.prompt for s in made.steps if s.step == 1} == {
            act_prompt(task.instruction, ["RotateRight"]) for task in tasks[:3]
        }
    lived = json.dumps([r.model_dump(mode="json", exclude={"image"}) for r in (*made.episodes, *made.steps)])
    for word in ("success", "goal", "error", "visible", "position", "reward"):
        assert word not in lived


def test_players_that_came_up_are_stopped_when_another_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    started, stopped = [], []

    class Player:
        def close(self) -> None:
            stopped.append(self)

    def start(settings: WorldSettings) -> Player:
        started.append(None)
        if len(started) == 2:
            raise WorldError("no display")
        return Player()

    monkeypatch.setattr("selu.rollout.make_world", start)
    with pytest.raises(WorldError, match="no display"), WorldPool(SETTINGS).worlds(4):
        pass
    assert len(started) == 4
    assert len(stopped) == 3


class Failing(ThorWorld):
    """Is lost in one step, once; what it shows afterwards is brighter if it is never twice the same."""

    def __init__(self, at: int, *, brighter: int) -> None:
        super().__init__(PlayerSimulator(SETTINGS), SETTINGS)
        self.at, self.brighter, self.lost = at, brighter, False
        self.resets = 0

    def reset(self, **given: Any) -> tuple[Picture, dict[str, Any]]:
        self.resets += 1
        return self._shown(super().reset(**given)[0]), {}

    def step(self, action: str) -> tuple[Picture, float, bool, bool, dict[str, Any]]:
        self.at -= 1
        if self.at < 0 and not self.lost:
            self.lost = True
            raise WorldError("The simulator was lost.")
        frame, *rest = super().step(action)
        return self._shown(frame), *rest  # type: ignore[return-value]

    def _shown(self, frame: Picture) -> Picture:
        return frame // 2 + np.uint8(self.brighter * self.resets)


@pytest.mark.parametrize(
    ("ends", "margin", "says"),
    [
        (False, 4, r"a frame of \(100, 96, 3\), but its observation_space says \(96, 96, 3\)"),
    ],
)
def test_a_world_that_breaks_its_contract_is_not_recorded(
    tasks: list[Task], ends: bool, margin: int, says: str
) -> None:
    class Breaking(ThorWorld):
        def step(self, action: str) -> tuple[Picture, float, bool, bool, dict[str, Any]]:
            frame, _, terminated, truncated, _ = super().step(action)
            return np.pad(frame, ((0, margin), (0, 0), (0, 0))), 0.0, ends or terminated, truncated, {}

    actor = ActorPolicy(Repeating("MoveAhead"), temperature=0.0, max_new_tokens=4, memory=Memory(history=0))
    with pytest.raises(TerminalError, match=says):
        roll_out(tasks[:1], [0], actor, [Breaking(PlayerSimulator(SETTINGS), SETTINGS)])


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"held": []}, r"must have every predicate, but lacks .*open"),
        ({name: [] for name in PREDICATES} | {"held": {np.int64(3)}}, "cannot be recorded"),
    ],
)
def test_a_world_whose_truth_cannot_be_recorded_is_said(tasks: list[Task], facts: dict[str, Any], says: str) -> None:
    class Telling(ThorWorld):
        def oracle(self) -> OracleState:
            return OracleState(True, "", facts)

    with pytest.raises(TerminalError, match=says):
        roll_out(tasks[:1], [0], RandomPolicy(), [Telling(PlayerSimulator(SETTINGS), SETTINGS)])


def test_idle_players_of_a_real_build_are_stopped_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[str] = []
    monkeypatch.setattr(selu.rollout, "_pools", {})
    monkeypatch.setattr(WorldPool, "close", lambda pool: stopped.append(str(pool.settings.max_steps)))
    build = WorldSettings(local_executable_path="a build", max_steps=14)
    longer = build.model_copy(update={"max_steps": 20})
    for settings in (build, build, longer):
        shared_pool(settings)
    assert stopped == ["14"]
    stopped.clear()
    monkeypatch.setattr(selu.rollout, "_pools", {})
    for settings in (WorldSettings(), WorldSettings(max_steps=20)):
        shared_pool(settings)
    assert stopped == []


def test_an_episode_whose_world_is_lost_is_repeated_as_it_was(tasks: list[Task]) -> None:
    actor = ActorPolicy(Counting({}), temperature=0.0, max_new_tokens=4, memory=Memory(history=4))
    plain = roll_out(tasks[:3], range(3), actor, [Failing(10**6, brighter=0) for _ in range(2)])
    asked = len(actor.model.calls)  # type: ignore[attr-defined]
    lossy = [Failing(3, brighter=0), Failing(10**6, brighter=0)]
    assert roll_out(tasks[:3], range(3), actor, lossy) == plain
    # The others' batches stay what they were.
    assert len(actor.model.calls) == 2 * asked  # type: ignore[attr-defined]
    with pytest.raises(WorldError, match=r"was lost.* try 1 of 1"):
        roll_out(tasks[:3], range(3), actor, [Failing(3, brighter=0)], restarts=0)


def test_a_scripted_policy_may_lose_the_world_by_looking_into_it(tasks: list[Task]) -> None:
    class LostOnce(ThorWorld):
        asked = 0

        def candidates(self) -> Mapping[str, Any]:
            self.asked += 1
            if self.asked == 3:
                raise WorldError("The simulator was lost.")
            return super().candidates()

    lossy = LostOnce(PlayerSimulator(SETTINGS), SETTINGS)
    plain = ThorWorld(PlayerSimulator(SETTINGS), SETTINGS)
    assert roll_out(tasks[:2], [0, 0], PlannerPolicy(), [lossy]) == roll_out(
        tasks[:2], [0, 0], PlannerPolicy(), [plain]
    )
    assert lossy.asked > 3


def test_in_a_world_that_is_never_twice_the_same_the_actor_is_asked_anew(tasks: list[Task]) -> None:
    actor = ActorPolicy(Counting({}), temperature=0.0, max_new_tokens=4, memory=Memory(history=4))
    world = Failing(3, brighter=10)
    made = roll_out(tasks[:1], [0], actor, [world])
    assert world.resets == 3  # at first, to repeat it, and to begin again
    assert [step.step for step in made.steps] == list(range(5))
    assert [frame.frame_index for frame in made.frames] == list(range(6))
    assert {step.action for step in made.steps[:4]} == {"RotateLeft"}
    undisturbed = Failing(10**6, brighter=10)
    undisturbed.resets = 2
    assert made == roll_out(tasks[:1], [0], actor, [undisturbed])


class Counting(ScriptedModel):
    """An actor that turns four times and is done."""

    def _answer(self, prompt: Prompt) -> tuple[str, float]:
        return ("Done" if prompt.text.count("RotateLeft") >= 4 else "RotateLeft"), 0.5
