"""The actor's training rows: what accepted trajectories did, up to the deed that did it, and pairs of them as one.

Three things are left out, since they only led astray: steps that changed nothing or led back to the same picture, turns
back on the last turn, and whatever came after the deed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import datasets

from selu.config import DatasetSettings
from selu.datasets.rows import Row, assemble, own_room, rank, take
from selu.deeds import WALKING, Deed, deeds_of, undoes
from selu.errors import ArtifactError
from selu.frames import FrameTable, steps_by_episode
from selu.memory import Memory
from selu.prompting import PromptStyle, act_prompt
from selu.records import Episode, Frame, Relabel, Step, Verdict
from selu.worlds.actions import read_action
from selu.worlds.tasks import join_steps, steps_of, verbs_of

__all__ = ["actor_rows"]

_BACK = {"RotateLeft": "RotateRight", "RotateRight": "RotateLeft", "LookUp": "LookDown", "LookDown": "LookUp"}
"""Turns, and the turns back."""


def actor_rows(
    episodes: Sequence[Episode],
    steps: Iterable[Step],
    frames: Iterable[Frame],
    verdicts: Iterable[Verdict],
    relabels: Iterable[Relabel],
    settings: DatasetSettings,
    *,
    seed: int,
    memory: Memory,
    style: PromptStyle = "brief",
    skill_set: str = "household",
    replay: datasets.Dataset | None = None,
    previous: datasets.Dataset | None = None,
) -> datasets.Dataset:
    """The actor's training rows: (instruction, frame t) -> action t, as :data:`FEATURES` says, in seeded order.

    From episodes accepted as done under their own instruction and from accepted relabels, both cut at the frame where
    the instruction was achieved, as far as is known, and ended with `Done`; then from pairs of them that are joined to
    instructions of two steps. Malformed actions, steps that led back to the same picture and turns back are left out. `memory`
    (of own actions, which the prompt carries), `style` and `skill_set` are those of the rollout: a row under
    the own instruction has the very prompt of its step, but for those of `settings.recoveries`, whose memory ends with a
    walk that was tried too early. Needs every frame of the accepted trajectories.
    """
    known, table = {episode.episode_id: episode for episode in episodes}, FrameTable(frames)
    by_episode = steps_by_episode(steps)

    trajectories = []
    for verdict in verdicts:
        episode = known[verdict.episode_id]
        whole = verdict.instruction == episode.instruction and verdict.frame_index == episode.length
        if whole and verdict.accepted and verdict.verdict == "yes":
            evidence = json.loads(verdict.evidence)
            ids = {"verdict_id": verdict.verdict_id, "critic": evidence["critic"]}
            end = evidence["done_by_step"] + 1 if "done_by_step" in evidence else episode.length
            trajectories.append(_Trajectory(episode, episode.instruction, end, True, ids))
    for relabel in relabels:
        if relabel.accepted:
            evidence = json.loads(relabel.evidence)
            ids = {"relabel_id": relabel.relabel_id, "critic": evidence["critic"]}
            episode, whole = known[relabel.episode_id], not relabel.partial
            source = "step" if whole else "start"
            trajectories.append(_Trajectory(episode, relabel.instruction, relabel.frame_index, whole, ids, source))
    trajectories.sort(key=lambda item: rank(seed, item.episode.episode_id, item.instruction, item.end))

    def prompt(instruction: str, before: Sequence[str]) -> str:
        return act_prompt(instruction, memory.recall(before, skill_set), style, skill_set)

    def rows_of(trajectory: _Trajectory, before: Sequence[str] = ()) -> list[Row]:
        taken = by_episode.get(trajectory.episode.episode_id, [])
        # Without a memory nobody would know that anything was tried.
        recoveries = settings.recoveries and memory.history > 0
        return _trajectory_rows(trajectory, taken, table, prompt, before, recoveries=recoveries)

    units = [rows_of(trajectory) for trajectory in trajectories]
    # Without a memory nothing would tell the second half from the first.
    each = settings.compositions if memory.history else 0
    deeds = {
        item: deeds_of(by_episode.get(item.episode.episode_id, [])[: item.end], table) for item in trajectories if each
    }
    for first, second in _compositions(deeds, known.values(), each, seed):
        steps_before = by_episode.get(first.episode.episode_id, [])[: first.end]
        before = [step.action for step in steps_before if step.action != "Done"]
        later = rows_of(second, before)
        units.append([*rows_of(first), *_at_the_seam(first, later, table), *later])
    seen: set[tuple[str, str, str]] = set()
    fresh: list[list[Row]] = []
    for unit in units:
        fresh.append([])
        for row in unit:
            shown = (*row.sight, row.completion)
            if shown not in seen:
                seen.add(shown)
                fresh[-1].append(row)
    return assemble(take(fresh, own_room(settings)), settings, seed, replay, previous)


@dataclass(frozen=True, eq=False)
class _Trajectory:
    """The first `end` steps of an episode as an example of an instruction; one that is not whole teaches no Done."""

    episode: Episode
    instruction: str
    end: int
    whole: bool
    ids: Mapping[str, str]
    source: str = "step"


def _compositions(
    trajectories: Mapping[_Trajectory, Sequence[Deed]], episodes: Iterable[Episode], each: int, seed: int
) -> list[tuple[_Trajectory, _Trajectory]]:
    """Pairs of one-step trajectories of a scene, told to be the two halves of one instruction, in seeded order.

    Whole instructions of two steps are hardly ever done by chance, so that there is nothing to imitate, but their halves
    are. Verbs are paired as the practised instructions pair them; each first half gets up to `each` second halves, of other
    episodes, whose deeds do not undo what it did.
    """
    practised = {verbs_of(episode.instruction) for episode in episodes if len(steps_of(episode.instruction)) == 2}
    halves: dict[str, list[_Trajectory]] = {}
    for trajectory in trajectories:
        # Recordings may name no scene; then nobody knows that two of them are of one.
        if trajectory.whole and trajectory.episode.scene and len(steps_of(trajectory.instruction)) == 1:
            halves.setdefault(trajectory.episode.scene, []).append(trajectory)
    pairs = []
    for first in itertools.chain.from_iterable(halves.values()):
        thing = first.instruction.split(" the ", maxsplit=1)[-1]
        partners: dict[str, _Trajectory] = {}
        for second in halves[first.episode.scene]:
            joined = join_steps(first.instruction, second.instruction)
            if (
                verbs_of(joined) in practised
                and not second.instruction.endswith(f"the {thing}")
                and second.episode.episode_id != first.episode.episode_id
                and not undoes(trajectories[second], first.instruction)
            ):
                partners.setdefault(joined, second)
        for joined in sorted(partners, key=lambda text: rank(seed, first.episode.episode_id, text))[:each]:
            start = replace(first, instruction=joined, whole=False, source="composed")
            pairs.append((start, replace(partners[joined], instruction=joined, source="composed")))
    # Where there is no room for all, it is not the first scenes that get theirs.
    return sorted(pairs, key=lambda pair: rank(seed, "composed", pair[0].episode.episode_id, pair[0].instruction))


def _at_the_seam(first: _Trajectory, later: Sequence[Row], frames: FrameTable) -> list[Row]:
    """What comes next where the first half of a composition ended; without it, Done would be all that is learned of that.

    Nobody knows which way the second thing is from there. But a half that begins by looking around may begin anywhere, and one
    that begins with a walk to it at worst is tried too early, which recoveries teach to get over.
    """
    for row in later[:1]:
        action = read_action(row.completion)
        if row.frame_index == 0 and action is not None and (action.verb in _BACK or action.verb in WALKING):
            image = frames.image(first.episode.episode_id, first.end)
            ids = {"verdict_id": "", "relabel_id": "", **first.ids}
            return [replace(row, image=image, episode=first.episode, frame_index=first.end, **ids)]
    return []


def _trajectory_rows(
    trajectory: _Trajectory,
    steps: Sequence[Step],
    frames: FrameTable,
    prompt: Callable[[str, Sequence[str]], str],
    before: Sequence[str],
    *,
    recoveries: bool,
) -> list[Row]:
    """Rows of steps 0..end-1 and, of a whole trajectory, a final `Done`; `before` are actions from before the first.

    A turn back on the last turn is left out like what led back: looking to and fro, an actor never sees what is behind it.
    With `recoveries`, a turn that led to a walk teaches twice: also what to do when that walk was tried too early. A walk to
    what is not in view leaves the picture as it is, so that an actor which hardly ever met that says the same for ever.
    """
    episode, end = trajectory.episode, trajectory.end
    steps = [step for step in steps if step.step < end]
    if [step.step for step in steps] != list(range(end)):
        raise ArtifactError(f"episode {episode.episode_id} must have the steps 0..{end - 1}, got {len(steps)} of them")
    actions = [*before, *(step.action for step in steps)]

    def row(index: int, completion: str, source: str, also: Sequence[str] = ()) -> Row:
        image, told = frames.image(episode.episode_id, index), trajectory.instruction
        shown = prompt(told, [*actions[: len(before) + index], *also])
        return Row(shown, completion, image, source, episode, told, index, **trajectory.ids)

    # Never the last deed: whoever opened the fridge before it closed it sees in the end what it saw before both.
    last = next((deed.step for deed in reversed(deeds_of(steps, frames)) if deed.seen), end)
    wasted = _in_circles(episode.episode_id, 0, last, frames) | _in_circles(episode.episode_id, last + 1, end, frames)
    rows: list[Row] = []
    turned = ""
    for step in steps:
        action = read_action(step.action)
        if not step.well_formed or action is None:
            continue
        if action.verb == "Done":
            return [*rows, row(step.step, "Done", "done")] if trajectory.whole else rows
        if step.step in wasted:
            continue
        # Where it got somewhere, all looks new.
        last_turn, turned = turned, action.verb if action.verb in _BACK else ""
        if last_turn == _BACK.get(action.verb):
            continue
        rows.append(row(step.step, step.action, trajectory.source))
        if recoveries and action.verb in _BACK:
            walk = next((later for later in steps[step.step + 1 :] if _walks(later) and later.step not in wasted), None)
            if walk is not None:
                rows.append(row(step.step, step.action, "recovery", [walk.action]))
    return [*rows, row(end, "Done", "done")] if trajectory.whole else rows


def _walks(step: Step) -> bool:
    action = read_action(step.action) if step.well_formed else None
    return action is not None and action.verb in WALKING


def _in_circles(episode_id: str, start: int, end: int, frames: FrameTable) -> set[int]:
    """Steps start..end-1 that lie between two of their frames with the same picture: whatever they did, they led back.

    Among them are those that changed nothing. Nobody should learn them; the shortest way leaves them out.
    """
    wasted: set[int] = set()
    while start < end:
        back = next((i for i in range(end, start, -1) if frames.same_picture(episode_id, start, i)), start)
        wasted.update(range(start, back))
        start = max(back, start + 1)
    return wasted
