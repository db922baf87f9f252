"""The contract of a world as a test: :func:`check_world` plays any world and says where it breaks its promises.

def test_my_world() -> None:
    check_world(lambda: MyWorld(SETTINGS), TASK, actions=["MoveAhead", "PickUp"], max_steps=10)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from selu.config import WorldSettings
from selu.errors import ConfigError
from selu.records import Task
from selu.worlds.actions import DONE, parse_action
from selu.worlds.base import OracleState, World, lacking

__all__ = ["BrokenContract", "check_world"]

MALFORMED = "please do something useful"


class BrokenContract(AssertionError):
    """A world breaks the contract; its text is one sentence a breach."""


class _PointlessToGoOn(Exception):
    """What comes next would say the same again."""


def check_world(
    make_world: Callable[[], World],
    task: Task,
    actions: Sequence[str],
    *,
    max_steps: int = WorldSettings().max_steps,
    seed: int = 7,
) -> None:
    """Play two worlds of one kind through everything that :class:`~selu.worlds.base.World` promises.

    ``actions`` are texts other than ``Done``, played in turn; at least one must change the picture. The more of the task
    they do, the more is tested: a world that ends its episode when a goal is reached is only caught if they reach it.

    Raises:
        BrokenContract: with all breaches that were found, one a line.
    """
    if not actions or DONE in actions:
        raise ValueError(f"actions must be some, and none of them {DONE}, which is tried anyway; got {list(actions)}")
    inspection = _Inspection(make_world, task, list(actions), max_steps, seed)
    try:
        inspection.run()
    except _PointlessToGoOn:
        pass
    finally:
        inspection.close()
    if inspection.breaches:
        lines = "\n".join(f"  - {breach}" for breach in dict.fromkeys(inspection.breaches))
        raise BrokenContract(f"this world does not keep to the contract of selu.worlds.World:\n{lines}")


@dataclass
class _Played:
    """What was seen of an episode: T+1 frames ``(H, W, 3) uint8`` and, if it was asked for, the truth beside them."""

    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    """As they came."""
    copies: list[NDArray[np.uint8]] = field(default_factory=list)
    """As they were when they came."""
    truths: list[OracleState] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False


class _Inspection:
    def __init__(
        self, make_world: Callable[[], World], task: Task, actions: list[str], max_steps: int, seed: int
    ) -> None:
        self.make_world, self.task, self.actions = make_world, task, actions
        self.max_steps, self.seed = max_steps, seed
        self.breaches: list[str] = []
        self.worlds: list[World] = []

    def run(self) -> None:
        world = self._start()
        self._look_at_the_world(world)
        played = self._until_the_limit(world)
        self._is_the_same_again(world, played)
        self._ends_on_done(world)
        self._does_nothing_when_malformed(world)

    # --- finding fault -------------------------------------------------------------------------------------------

    def expect(self, holds: bool, breach: str) -> bool:
        """Note a breach unless it ``holds``."""
        if not holds:
            self.breaches.append(breach)
        return holds

    def insist(self, holds: bool, breach: str) -> None:
        """As :meth:`expect`; without it nothing further can be looked at."""
        if not self.expect(holds, breach):
            raise _PointlessToGoOn

    def call(self, what: str, function: Callable[[], Any]) -> Any:
        """The result of a call that must not raise."""
        try:
            return function()
        except Exception as error:
            self.breaches.append(f"{what} must not raise, it raised {type(error).__name__}: {error}")
            raise _PointlessToGoOn from error

    # --- the promises --------------------------------------------------------------------------------------------

    def _start(self) -> World:
        world = self.call("making the world", self.make_world)
        self.insist(isinstance(world, World), f"it must be a selu.worlds.World, got {type(world).__name__}")
        assert isinstance(world, World)
        self.worlds.append(world)
        return world

    def _look_at_the_world(self, world: World) -> None:
        for name, kind in (("observation_space", gymnasium.spaces.Box), ("action_space", gymnasium.spaces.Text)):
            space = vars(world).get(name, vars(type(world)).get(name))
            self.expect(
                isinstance(space, kind),
                f"{name} must be a gymnasium.spaces.{kind.__name__}, got {type(space).__name__}",
            )
        try:
            for action in (*self.actions, DONE):
                self.expect(
                    parse_action(action, world.skill_set) is not None,
                    f"`{action}` must be an action of its skill set {world.skill_set}",
                )
        except ConfigError as error:
            self.insist(False, f"skill_set must name a known grammar: {error}")

    def _reset(self, world: World, ask: bool = True) -> _Played:
        answer = self.call("reset(seed=, options={'task': Task})", lambda: self._bare_reset(world))
        self.insist(
            isinstance(answer, tuple) and len(answer) == 2,
            f"reset must give (frame, info), got {_kind(answer)}",
        )
        frame, info = answer
        self.expect(info == {}, f"reset's info must be {{}}, got {info!r}: what a world knows is asked by oracle()")
        played = _Played()
        self._see(world, played, frame, "reset", ask)
        task = self.call("task", lambda: world.task)
        self.expect(task == self.task, "task must be the task that reset was given")
        return played

    def _bare_reset(self, world: World) -> Any:
        return world.reset(seed=self.seed, options={"task": self.task})

    def _step(self, world: World, played: _Played, action: str, ask: bool = True) -> None:
        answer: Any = self.call(f"step({action!r})", lambda: world.step(action))
        self.insist(
            isinstance(answer, tuple) and len(answer) == 5,
            f"step must give (frame, reward, terminated, truncated, info), got {_kind(answer)}",
        )
        frame, reward, terminated, truncated, info = answer
        self.expect(
            isinstance(reward, float) and reward == 0.0, f"the reward must be 0.0 always, got {reward!r} for {action!r}"
        )
        self.expect(info == {}, f"step's info must be {{}}, got {info!r}: what a world knows is asked by oracle()")
        for name, value in (("terminated", terminated), ("truncated", truncated)):
            self.expect(isinstance(value, bool), f"{name} must be a bool, got {_kind(value)}")
        played.terminated, played.truncated = bool(terminated), bool(truncated)
        self._see(world, played, frame, "step", ask)

    def _see(self, world: World, played: _Played, frame: Any, source: str, ask: bool) -> None:
        fine = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
        got = f"{frame.shape} {frame.dtype}" if isinstance(frame, np.ndarray) else _kind(frame)
        self.insist(fine, f"{source}'s frame must be (H, W, 3) uint8, got {got}")
        if played.frames:
            first = played.frames[0].shape
            self.insist(frame.shape == first, f"all frames must be of one shape, got {first} and then {frame.shape}")
        else:
            space = vars(world).get("observation_space", vars(type(world)).get("observation_space"))
            if isinstance(space, gymnasium.spaces.Box):
                self.expect(
                    space.shape == frame.shape and space.dtype == np.uint8,
                    f"observation_space must be that of its frames, {frame.shape} uint8, got {space.shape} {space.dtype}",
                )
        played.frames.append(frame)
        played.copies.append(frame.copy())
        if ask:
            played.truths.append(self._truth(world))

    def _truth(self, world: World) -> OracleState:
        truth = self.call("oracle()", world.oracle)
        self.insist(isinstance(truth, OracleState), f"oracle() must give an OracleState, got {_kind(truth)}")
        assert isinstance(truth, OracleState)
        missing = lacking(truth.facts)
        self.expect(not missing, f"oracle().facts must have every predicate, {', '.join(missing)} is missing")
        try:
            json.dumps(truth.facts)
        except TypeError as error:
            self.expect(False, f"oracle().facts must be JSON, as it is recorded: {error}")
        return truth

    def _until_the_limit(self, world: World) -> _Played:
        played = self._reset(world)
        first = played.frames[0]
        self.expect(len(np.unique(first)) > 1, "the first frame is of one colour: a world that shows nothing")
        for number in range(1, self.max_steps + 1):
            action = self.actions[(number - 1) % len(self.actions)]
            self._step(world, played, action)
            self.insist(
                not played.terminated,
                f"only the actor's own {DONE} terminates an episode, it was {action!r} at step {number}",
            )
            if number < self.max_steps:
                self.insist(
                    not played.truncated, f"step {number} was truncated, before the step limit of {self.max_steps}"
                )
        self.expect(played.truncated, f"step {self.max_steps} is the limit and must be truncated, it was not")
        self.expect(
            all(np.array_equal(frame, copy) for frame, copy in zip(played.frames, played.copies, strict=True)),
            "a frame must stay as it was given, an earlier one was changed by a later step: give copies",
        )
        self.expect(
            any(not np.array_equal(first, other) for other in played.copies[1:]),
            "none of the actions changed the picture; give actions that do something",
        )
        truth = self.call("candidates()", world.candidates)
        self.expect(isinstance(truth, Mapping), f"candidates() must give a mapping, got {_kind(truth)}")
        return played

    def _is_the_same_again(self, world: World, before: _Played) -> None:
        for who, other in (("a second episode", world), ("a second world", self._start())):
            again = self._reset(other)
            for number in range(self.max_steps):
                self._step(other, again, self.actions[number % len(self.actions)])
            self.expect(
                all(np.array_equal(a, b) for a, b in zip(before.copies, again.copies, strict=True)),
                f"equal task, seed and actions must give equal frames, those of {who} differ",
            )
            self.expect(
                before.truths == again.truths,
                f"equal task, seed and actions must give an equal oracle, that of {who} differs",
            )
        unasked = self._reset(world, ask=False)
        for number in range(self.max_steps):
            self._step(world, unasked, self.actions[number % len(self.actions)], ask=False)
        self.expect(
            all(np.array_equal(a, b) for a, b in zip(before.copies, unasked.copies, strict=True)),
            "asking the oracle must change nothing, frames differ from those of an episode in which it was not asked",
        )

    def _ends_on_done(self, world: World) -> None:
        for steps_before in (0, self.max_steps - 1):
            played = self._reset(world)
            for number in range(steps_before):
                self._step(world, played, self.actions[number % len(self.actions)])
            self._step(world, played, DONE)
            self.expect(
                played.terminated and not played.truncated,
                f"{DONE} at step {steps_before + 1} must terminate and not truncate, got terminated={played.terminated} "
                f"truncated={played.truncated}",
            )

    def _does_nothing_when_malformed(self, world: World) -> None:
        played = self._reset(world)
        for _ in range(self.max_steps):
            self._step(world, played, MALFORMED)
            self.insist(not played.terminated, f"a text that is no action must not end an episode: {MALFORMED!r}")
        self.expect(
            all(np.array_equal(played.copies[0], other) for other in played.copies),
            f"a text that is no action must do nothing, {MALFORMED!r} changed the picture",
        )
        self.expect(
            all(dict(truth.facts) == dict(played.truths[0].facts) for truth in played.truths),
            f"a text that is no action must do nothing, {MALFORMED!r} changed the oracle's facts",
        )
        self.expect(
            not any(truth.action_success for truth in played.truths[1:]),
            "oracle().action_success must be false after a text that is no action",
        )
        self.expect(played.truncated, "a text that is no action counts as a step, the step limit did not come")

    def close(self) -> None:
        """Close each world twice, as a run that is stopped in its cleaning up does."""
        for world in self.worlds:
            for time in ("close()", "a second close()"):
                try:
                    world.close()
                except Exception as error:
                    self.breaches.append(f"{time} must not raise, it raised {type(error).__name__}: {error}")


def _kind(value: object) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
