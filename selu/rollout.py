"""Rolling out a policy: several worlds side by side in lockstep, one batched question to the policy a tick.

The result depends on the tasks, seeds and policy: each action is drawn from a generator of its own. Of the number of
worlds it depends only through the rounding of a model's arithmetic, since that many situations make a batch.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from selu.config import WorldSettings
from selu.errors import TerminalError, WorldError
from selu.frames import encode_picture
from selu.memory import Memory
from selu.models.base import Prompt, Reply, VisionLanguageModel
from selu.prompting import act_prompt
from selu.records import Episode, Frame, OracleEpisode, OracleStep, Step, Task
from selu.worlds.actions import DONE, parse_action
from selu.worlds.base import Frame as Picture
from selu.worlds.base import World, holds, lacking
from selu.worlds.planner import next_action, random_action, sibling_goal, would_finish
from selu.worlds.registry import make_world
from selu.worlds.tasks import steps_of

__all__ = [
    "ActorPolicy",
    "NearMissPolicy",
    "PlannerPolicy",
    "Policy",
    "RandomPolicy",
    "Recording",
    "SiblingPolicy",
    "Situation",
    "WorldPool",
    "episode_id",
    "roll_out",
    "shared_pool",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Situation:
    """What a policy is asked about. ``world`` is there for scripted policies alone, which may read the truth."""

    instruction: str
    frame: Picture
    history: tuple[str, ...]
    seed: int
    world: World | None
    skill_set: str = "household"


class Policy(Protocol):
    """Whatever chooses actions."""

    @property
    def revision(self) -> str:
        """Content hash or name: equal revisions act alike."""
        ...

    scripted: bool
    """Whether it may see the world itself."""
    by_parts: bool
    """Whether an instruction of several steps is put to it step by step, each until it says Done."""

    def act(self, situations: Sequence[Situation]) -> list[Reply]:
        """One action text for each situation."""
        ...


class ActorPolicy:
    """A vision-language model that writes actions."""

    scripted = False

    def __init__(
        self,
        model: VisionLanguageModel,
        *,
        temperature: float,
        max_new_tokens: int,
        memory: Memory,
        by_parts: bool = False,
    ) -> None:
        self.model, self.temperature = model, temperature
        self.max_new_tokens, self.memory = max_new_tokens, memory
        self.by_parts = by_parts

    @property
    def revision(self) -> str:
        return self.model.revision

    def prompt(self, situation: Situation) -> Prompt:
        """What the model reads: the instruction, what it remembers of its own actions, and the frame."""
        before = self.memory.recall(situation.history, situation.skill_set)
        text = act_prompt(situation.instruction, before, self.model.prompt_style, situation.skill_set)
        return Prompt((situation.frame,), text)

    def act(self, situations: Sequence[Situation]) -> list[Reply]:
        return self.model.generate(
            [self.prompt(s) for s in situations],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seeds=[s.seed for s in situations],
        )


class RandomPolicy:
    """The floor: any action of the grammar."""

    revision = "random"
    scripted = by_parts = False

    def act(self, situations: Sequence[Situation]) -> list[Reply]:
        return [Reply(random_action(np.random.default_rng(s.seed), s.skill_set), 0.0) for s in situations]


class PlannerPolicy:
    """The ceiling: the scripted planner, with a share of random actions if ``noise`` is above 0."""

    scripted = True
    by_parts = False

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise
        self.revision = f"planner-noise-{noise:g}" if noise else "planner"

    def act(self, situations: Sequence[Situation]) -> list[Reply]:
        replies = []
        for s in situations:
            rng = np.random.default_rng(s.seed)
            assert s.world is not None, "a scripted policy is given the world"
            noisy = rng.random() < self.noise
            text = random_action(rng, s.skill_set) if noisy else next_action(s.world, s.history)
            replies.append(Reply(text, 0.0))
        return replies


class NearMissPolicy:
    """A hard failure: the planner walks up to it, and says Done in place of the action that would fulfil the goal."""

    revision = "near-miss"
    scripted = True
    by_parts = False

    def act(self, situations: Sequence[Situation]) -> list[Reply]:
        return [Reply(self._next(s.world, s.history), 0.0) for s in situations if s.world is not None]

    def _next(self, world: World, history: Sequence[str]) -> str:
        text = next_action(world, history)
        return "Done" if would_finish(world, text) else text


class SiblingPolicy(NearMissPolicy):
    """A hard failure: the planner does the same to another thing. Where there is no other, a near miss."""

    revision = "sibling"

    def _next(self, world: World, history: Sequence[str]) -> str:
        goal = sibling_goal(world, history)
        return super()._next(world, history) if goal is None else next_action(world, history, goal)


@dataclass
class Recording:
    """What a rollout made: the episodes as lived, and apart from them the truth."""

    episodes: list[Episode] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    oracle_episodes: list[OracleEpisode] = field(default_factory=list)
    oracle_steps: list[OracleStep] = field(default_factory=list)

    def extend(self, other: Recording) -> None:
        """Append another recording."""
        for name in ("episodes", "steps", "frames", "oracle_episodes", "oracle_steps"):
            getattr(self, name).extend(getattr(other, name))


def episode_id(task: Task, policy: Policy, seed: int) -> str:
    """The hash that names an episode."""
    return hashlib.sha256(f"{task.task_id}|{policy.revision}|{seed}".encode()).hexdigest()[:16]


def _breach(said: str) -> TerminalError:
    return TerminalError(
        f"{said}; run selu.testing.check_world on it, which says all that it breaks (selu/worlds/README.md)"
    )


class _Lane:
    """One world and the episode that runs in it; where the world is lost, the episode is played again in a fresh one."""

    def __init__(self, world: World, task: Task, seed: int, policy: Policy, restarts: int) -> None:
        self.world, self.task, self.seed, self.policy = world, task, seed, policy
        self.id = episode_id(task, policy, seed)
        self.restarts = self.restarts_left = restarts
        self.replies: list[tuple[Reply, str]] = []
        self.made = Recording()
        try:
            self._begin()
        except WorldError as error:
            self._repeat(error)

    def _begin(self) -> None:
        self.actions: list[str] = []
        self.told = steps_of(self.task.instruction) if self.policy.by_parts else [self.task.instruction]
        self.made = Recording()
        self.finished = False
        self.picture, _ = self.world.reset(seed=self.seed, options={"task": self.task})
        self._record_frame()

    def _repeat(self, error: WorldError) -> None:
        """Play the same replies in a fresh world.

        They come to the same frames, and the episode goes on as if nothing had been. In a world that is never twice the
        same they do not: then it begins once more, and the policy is asked anew.
        """
        lived = self.made.frames
        while True:
            if self.restarts_left == 0:
                raise WorldError(
                    f"{error} It was try {self.restarts + 1} of {self.restarts + 1} to play task {self.task.task_id} in "
                    f"{self.task.scene}; see `selu doctor`, or raise world.restarts or world.step_timeout."
                ) from error
            self.restarts_left -= 1
            logger.warning("%s Episode %s is played again from its start.", error, self.id)
            try:
                self._begin()
                for reply, prompt in self.replies:
                    self._perform(reply, prompt)
                if self.made.frames[: len(lived)] != lived:
                    self.replies, lived = [], []
                    self._begin()
                return
            except WorldError as again:
                error = again

    def situation(self) -> Situation:
        draw = np.random.SeedSequence([self.seed, len(self.actions)]).generate_state(1, np.uint64)[0]
        world = self.world if self.policy.scripted else None
        return Situation(self.told[0], self.picture, tuple(self.actions), int(draw) >> 1, world, self.world.skill_set)

    def turn(self) -> None:
        """A step of a scripted policy, which looks into the world itself and may lose it."""
        try:
            reply = self.policy.act([self.situation()])[0]
        except WorldError as error:
            self._repeat(error)
        else:
            self.step(reply, "")

    def step(self, reply: Reply, prompt: str) -> None:
        """Perform a reply."""
        self.replies.append((reply, prompt))
        try:
            self._perform(reply, prompt)
        except WorldError as error:
            self._repeat(error)

    def _perform(self, reply: Reply, prompt: str) -> None:
        """Performs the reply, save where it is the Done of one part of several: then the next part is asked about."""
        if reply.text.strip() == DONE and len(self.told) > 1:
            del self.told[0]
            return
        well_formed = parse_action(reply.text, self.world.skill_set) is not None
        self.made.steps.append(
            Step(
                episode_id=self.id,
                step=len(self.actions),
                prompt=prompt,
                action=reply.text,
                well_formed=well_formed,
                log_probability=reply.log_probability,
            )
        )
        self.actions.append(reply.text)
        self.picture, _, terminated, truncated, _ = self.world.step(reply.text)
        self._record_frame()
        if terminated or truncated:
            self._finish(terminated)

    def _record_frame(self) -> None:
        index = len(self.actions)
        space, shape = getattr(self.world, "observation_space", None), np.shape(self.picture)
        if space is not None and shape != space.shape:
            raise _breach(f"the world gave a frame of {shape}, but its observation_space says {space.shape}")
        truth = self.world.oracle()
        try:
            if missing := lacking(truth.facts):
                raise _breach(f"the world's oracle().facts must have every predicate, but lacks {', '.join(missing)}")
            image, facts = encode_picture(self.picture), json.dumps(truth.facts, sort_keys=True)
        except (AttributeError, TypeError, ValueError) as error:
            raise _breach(f"what the world gave cannot be recorded: {error}") from error
        self.made.frames.append(Frame(episode_id=self.id, frame_index=index, image=image))
        self.made.oracle_steps.append(
            OracleStep(
                episode_id=self.id,
                frame_index=index,
                action_success=truth.action_success,
                error_message=truth.error_message,
                goal_holds=holds(self.task.goal, truth.facts),
                facts=facts,
            )
        )

    def _finish(self, terminated: bool) -> None:
        self.finished = True
        self.made.episodes.append(
            Episode(
                episode_id=self.id,
                task_id=self.task.task_id,
                scene=self.task.scene,
                instruction=self.task.instruction,
                seed=self.seed,
                policy=self.policy.revision,
                length=len(self.actions),
                finish_reason="done" if terminated else "step_limit",
            )
        )
        success = self.made.oracle_steps[-1].goal_holds if self.task.goal else None
        self.made.oracle_episodes.append(OracleEpisode(episode_id=self.id, success=success))


def roll_out(
    tasks: Sequence[Task],
    seeds: Sequence[int],
    policy: Policy,
    worlds: Sequence[World],
    *,
    restarts: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Recording:
    """Play each task once and return the recording in the tasks' order.

    ``seeds[i]`` decides the draws of episode ``i``, which runs in world ``i mod n``. A scripted policy gives the same
    recording for any number of worlds; an actor's differs by no more than how a batch of that size is rounded.

    An episode whose world raises WorldError is played again from its start, ``restarts`` times at most, while the others
    wait; a world's ``reset`` brings up again what was lost. Its recording is that of an undisturbed one.

    Raises WorldError if an episode loses its world once more than that; nothing is half-recorded.
    """
    if len(tasks) != len(seeds):
        raise ValueError(f"one seed a task: got {len(tasks)} tasks and {len(seeds)} seeds")
    waiting = [list(range(lane, len(tasks), len(worlds))) for lane in range(len(worlds))]
    running: dict[int, tuple[int, _Lane]] = {}
    made: dict[int, Recording] = {}
    with ThreadPoolExecutor(max_workers=len(worlds)) as threads:
        while len(made) < len(tasks):
            free = [k for k in range(len(worlds)) if k not in running and waiting[k]]
            numbers = [waiting[k].pop(0) for k in free]
            started = threads.map(lambda k, i: _Lane(worlds[k], tasks[i], seeds[i], policy, restarts), free, numbers)
            running.update({k: (i, lane) for k, i, lane in zip(free, numbers, started, strict=True)})
            lanes = [running[k][1] for k in sorted(running)]
            if policy.scripted:
                list(threads.map(_Lane.turn, lanes))
            else:
                situations = [lane.situation() for lane in lanes]
                replies = policy.act(situations)
                prompts = [policy.prompt(s).text if isinstance(policy, ActorPolicy) else "" for s in situations]
                list(threads.map(_Lane.step, lanes, replies, prompts))
            for k in sorted(running):
                i, lane = running[k]
                if lane.finished:
                    made[i] = lane.made
                    del running[k]
                    if progress is not None:
                        progress(len(made), len(tasks))
    recording = Recording()
    for i in range(len(tasks)):
        recording.extend(made[i])
    return recording


class WorldPool:
    """Worlds of one kind, kept alive from shard to shard; after an error all are started afresh."""

    def __init__(self, settings: WorldSettings) -> None:
        self.settings = settings
        self._free: list[World] = []

    @contextmanager
    def worlds(self, count: int) -> Iterator[list[World]]:
        """Borrow ``count`` worlds."""
        taken = [self._free.pop() for _ in range(min(count, len(self._free)))]
        try:
            if len(taken) < count:
                with ThreadPoolExecutor(max_workers=4) as threads:
                    starting = [threads.submit(make_world, self.settings) for _ in range(count - len(taken))]
                # Those that came up are taken first, so that they are stopped where another did not.
                taken += [start.result() for start in starting if start.exception() is None]
                for start in starting:
                    start.result()
            yield taken
        except BaseException:
            for world in taken:
                with suppress(WorldError, OSError):
                    world.close()
            raise
        self._free += taken

    def close(self) -> None:
        """Stop every world."""
        while self._free:
            with suppress(WorldError, OSError):
                self._free.pop().close()


_pools: dict[str, WorldPool] = {}


def shared_pool(settings: WorldSettings) -> WorldPool:
    """This process's pool for these settings; closed at exit.

    Idle players of a real build for other settings, which keep a GPU's memory, are stopped.
    """
    key = settings.model_dump_json()
    if not settings.embedded:
        for pool in _pools.values():
            if pool.settings != settings and not pool.settings.embedded:
                pool.close()
    if key not in _pools:
        _pools[key] = WorldPool(settings)
        atexit.register(_pools[key].close)
    return _pools[key]
