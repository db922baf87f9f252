"""Training rows out of judged episodes, and dataset versions on disk.

Rows have the form that TRL trains on with a loss on the completion only: `prompt` (one user turn), `completion` (one
assistant turn) and `images`; beside them stands what each row is made of. A dataset version is a folder that
`datasets.load_dataset` reads: Parquet with embedded PNGs and a card with its parents and recipe.

Two dangers shape the critic's rows. A critic may answer from the instruction alone, if that says more about the label
than the picture does: so rows are balanced for each instruction, not only overall. And a critic that is trained on its
own answers alone forgets: so a share of rows rehearses the base model's frozen corpus.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import DatasetCardData
from pydantic import Field

from selu.config import DatasetSettings
from selu.deeds import Deed, deeds_of, undoes
from selu.errors import ArtifactError
from selu.frames import FrameTable, decode_picture, steps_by_episode
from selu.prompting import PromptStyle, act_prompt, ask_prompt, is_yes_no, question_prompt, verdict_prompt
from selu.records import Answer, Episode, Frame, Question, Record, Relabel, Step, Verdict
from selu.worlds.actions import parse_action
from selu.worlds.tasks import join_steps, steps_of, verbs_of

__all__ = [
    "FEATURES",
    "DatasetCard",
    "Lineage",
    "actor_rows",
    "critic_rows",
    "lineage",
    "save_dataset_version",
    "validate_rows",
]

REHEARSAL = "rehearsal"

_BEFORE = frozenset({"before_relabel", "before_deed"})

_ROWS_PER_GROUP = 500

_TURN = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})

FEATURES = datasets.Features(
    {
        "prompt": _TURN,
        "completion": _TURN,
        "images": datasets.List(datasets.Image()),
        "source": datasets.Value("string"),
        "instruction": datasets.Value("string"),
        "scene": datasets.Value("string"),
        "task_id": datasets.Value("string"),
        "episode_id": datasets.Value("string"),
        "frame_indices": datasets.List(datasets.Value("int64")),
        "question_id": datasets.Value("string"),
        "verdict_id": datasets.Value("string"),
        "relabel_id": datasets.Value("string"),
        "critic": datasets.Value("string"),
        "actor": datasets.Value("string"),
    }
)


class Lineage(Record):
    """What one training row is made of; ids that do not apply are empty."""

    row: int
    source: str = Field(
        description="verdict, relabel, before_relabel, before_deed, question, asking, step, start, composed, recovery, done or "
        "rehearsal"
    )
    instruction: str
    scene: str
    task_id: str
    episode_id: str
    frame_indices: tuple[int, ...]
    question_id: str
    verdict_id: str
    relabel_id: str
    critic: str = Field(description="revision of the model that labelled the row")
    actor: str = Field(description="revision of the policy that played the episode")
    prompt: str
    completion: str


class DatasetCard(Record):
    """What a dataset version says about itself. No time and no path of a machine: equal data, equal bytes."""

    name: str = Field(description="e.g. selu/thor/critic-round1")
    pretty_name: str
    description: str
    round: int
    parents: dict[str, str] = Field(default_factory=dict, description="what it was made from: name -> digest or key")
    recipe: dict[str, Any] = Field(default_factory=dict, description="settings, seeds and prompt digests")
    revisions: dict[str, str] = Field(default_factory=dict, description="model revisions: actor, critic, base")
    license: str = "apache-2.0"


@dataclass(frozen=True)
class _Row:
    """A training row before it becomes a column."""

    prompt: str
    completion: str
    image: bytes
    source: str
    episode: Episode
    instruction: str
    frame_index: int
    critic: str
    question_id: str = ""
    verdict_id: str = ""
    relabel_id: str = ""

    @property
    def sight(self) -> tuple[str, str]:
        """What a model is shown: the same sight must not be labelled in two ways."""
        return self.prompt, hashlib.sha256(self.image).hexdigest()

    @property
    def deed(self) -> str:
        """The verbs of the instruction."""
        return verbs_of(self.instruction)

    def columns(self) -> dict[str, Any]:
        return {
            "prompt": [{"role": "user", "content": self.prompt}],
            "completion": [{"role": "assistant", "content": self.completion}],
            "images": [{"bytes": self.image, "path": None}],
            "source": self.source,
            "instruction": self.instruction,
            "scene": self.episode.scene,
            "task_id": self.episode.task_id,
            "episode_id": self.episode.episode_id,
            "frame_indices": [self.frame_index],
            "question_id": self.question_id,
            "verdict_id": self.verdict_id,
            "relabel_id": self.relabel_id,
            "critic": self.critic,
            "actor": self.episode.policy,
        }


def _rank(seed: int, *parts: object) -> str:
    """A sort key that looks drawn at random, yet depends on nothing but the row and the seed."""
    return hashlib.sha256(json.dumps([seed, *parts]).encode()).hexdigest()


def _row_rank(seed: int, row: _Row) -> str:
    return _rank(seed, row.episode.episode_id, row.frame_index, row.prompt, row.completion)


def _consistent(rows: Iterable[_Row]) -> list[_Row]:
    """One row a sight; sights that got more than one completion are left out altogether."""
    by_sight: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        by_sight.setdefault(row.sight, []).append(row)
    return [same[0] for same in by_sight.values() if len({row.completion for row in same}) == 1]


def _balanced(rows: Sequence[_Row], negatives_per_positive: float, seed: int, *, repeats: int = 1) -> list[list[_Row]]:
    """Units of one `yes` row and its share of `no` rows about the same prompt, in seeded order.

    What a prompt has too many of is left out, so that it gives its label away as little as the data allow; but a `yes`
    row may come up to `repeats` times, each with other `no` rows, of which there are many more: they show what "done"
    hangs on. Hard negatives come first: the frame right before the goal was reached, then in turn pictures in which the
    like was done to another thing (so that the picture does not give the label away either) and any others. A ratio of 0
    keeps all `yes` rows and no other.
    """
    by_prompt: dict[str, tuple[list[_Row], list[_Row]]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, ([], []))[row.completion == "no"].append(row)
    done_there = {(row.deed, row.image) for row in rows if row.completion == "yes"}
    units = []
    for positives, negatives in by_prompt.values():
        positives.sort(key=lambda row: _row_rank(seed, row))
        negatives = _in_turn(sorted(negatives, key=lambda row: _row_rank(seed, row)), done_there)
        count = len(positives)
        if negatives_per_positive > 0:
            negatives = negatives[: round(count * repeats * negatives_per_positive)]
            count = min(count * repeats, math.ceil(len(negatives) / negatives_per_positive))
        else:
            negatives = []
        units += [
            (place // len(positives), [positives[place % len(positives)], *negatives[place::count]])
            for place in range(count)
        ]
    # Nothing comes again before everything came once.
    return [unit for _, unit in sorted(units, key=lambda item: (item[0], _row_rank(seed, item[1][0])))]


def _in_turn(negatives: Sequence[_Row], done_there: set[tuple[str, bytes]]) -> list[_Row]:
    before = [row for row in negatives if row.source in _BEFORE]
    rest = [row for row in negatives if row.source not in _BEFORE]
    siblings = [row for row in rest if (row.deed, row.image) in done_there]
    others = [row for row in rest if (row.deed, row.image) not in done_there]
    turns = itertools.chain.from_iterable(itertools.zip_longest(siblings, others))
    return [*before, *(row for row in turns if row is not None)]


def _take(units: Iterable[Sequence[_Row]], limit: int) -> list[_Row]:
    """Whole units until the next would go beyond `limit` rows."""
    taken: list[_Row] = []
    for unit in units:
        if len(taken) + len(unit) <= limit:
            taken.extend(unit)
    return taken


def _verdict_rows(
    episodes: Mapping[str, Episode],
    frames: FrameTable,
    questions: Mapping[str, Question],
    verdicts: Iterable[Verdict],
    relabels: Iterable[Relabel],
    style: PromptStyle,
) -> list[_Row]:
    """Every accepted `yes` or `no` about an instruction and a frame, relabels first."""

    def row(episode_id: str, frame_index: int, instruction: str, label: str, source: str, **ids: str) -> _Row:
        image = frames.image(episode_id, frame_index)
        episode = episodes[episode_id]
        prompt = verdict_prompt(instruction, style)
        return _Row(prompt, label, image, source, episode, instruction, frame_index, **ids)

    rows = []
    for relabel in relabels:
        if not relabel.accepted or relabel.partial:
            continue
        evidence = json.loads(relabel.evidence)
        ids = {"relabel_id": relabel.relabel_id, "critic": evidence["critic"]}
        rows.append(row(relabel.episode_id, relabel.frame_index, relabel.instruction, "yes", "relabel", **ids))
        before = [
            entry["frame_index"]
            for entry in evidence["questions"]
            if entry["frame_index"] < relabel.frame_index
            and entry["spoke_for"] == "yes"
            and questions[entry["question_id"]].expected == "no"
        ]
        if before:
            rows.append(row(relabel.episode_id, max(before), relabel.instruction, "no", "before_relabel", **ids))
    for verdict in verdicts:
        if verdict.accepted and verdict.verdict != "unsure":
            evidence = json.loads(verdict.evidence)
            ids = {"verdict_id": verdict.verdict_id, "critic": evidence["critic"]}
            where = verdict.episode_id, verdict.frame_index
            rows.append(row(*where, verdict.instruction, verdict.verdict, "verdict", **ids))
            if verdict.verdict == "yes" and "done_by_step" in evidence:
                before = evidence["done_by_step"]
                rows.append(row(verdict.episode_id, before, verdict.instruction, "no", "before_deed", **ids))
    return rows


def _asking_rows(
    episodes: Mapping[str, Episode], frames: FrameTable, verdicts: Iterable[Verdict], style: PromptStyle
) -> list[_Row]:
    """The critic's own lists of questions, one for each one-step instruction, that led to an accepted verdict.

    Without them it would forget how to ask while it learns to answer.
    """
    rows: dict[str, _Row] = {}
    for verdict in verdicts:
        evidence = json.loads(verdict.evidence)
        for asked in evidence.get("asked", []) if verdict.accepted else []:
            if asked["instruction"] not in rows:
                rows[asked["instruction"]] = _Row(
                    ask_prompt(asked["instruction"], style),
                    asked["text"],
                    frames.image(verdict.episode_id, verdict.frame_index),
                    "asking",
                    episodes[verdict.episode_id],
                    asked["instruction"],
                    verdict.frame_index,
                    evidence["critic"],
                    verdict_id=verdict.verdict_id,
                )
    return list(rows.values())


def _question_rows(
    episodes: Mapping[str, Episode],
    frames: FrameTable,
    questions: Mapping[str, Question],
    answers: Mapping[str, Answer],
    verdicts: Iterable[Verdict],
    relabels: Iterable[Relabel],
    style: PromptStyle,
) -> list[_Row]:
    """Answers to the critic's own questions that several ways of asking agree on."""
    agreed: dict[str, tuple[str, str]] = {}
    for verdict in verdicts:
        if not verdict.accepted:
            continue
        groups: dict[int, list[dict[str, Any]]] = {}
        for entry in json.loads(verdict.evidence)["questions"]:
            groups.setdefault(entry["group"], []).append(entry)
        for entries in groups.values():
            sides = {entry["spoke_for"] for entry in entries}
            if len(entries) > 1 and len(sides) == 1 and "unsure" not in sides:
                agreed.update((entry["question_id"], (verdict.verdict_id, "")) for entry in entries)
    for relabel in relabels:
        if relabel.accepted and not relabel.partial:
            entries = json.loads(relabel.evidence)["questions"]
            agreed.update((entry["question_id"], ("", relabel.relabel_id)) for entry in entries)
    rows = []
    for question_id, (verdict_id, relabel_id) in sorted(agreed.items()):
        question, answer = questions[question_id], answers[question_id]
        if question.kind == "direct":
            continue
        rows.append(
            _Row(
                question_prompt(question.text, style),
                answer.text,
                frames.image(question.episode_id, question.frame_index),
                "question",
                episodes[question.episode_id],
                question.instruction,
                question.frame_index,
                answer.critic,
                question_id=question_id,
                verdict_id=verdict_id,
                relabel_id=relabel_id,
            )
        )
    return rows


def critic_rows(
    episodes: Sequence[Episode],
    frames: Iterable[Frame],
    questions: Iterable[Question],
    answers: Iterable[Answer],
    verdicts: Sequence[Verdict],
    relabels: Sequence[Relabel],
    settings: DatasetSettings,
    *,
    seed: int,
    style: PromptStyle = "brief",
    replay: datasets.Dataset | None = None,
    previous: datasets.Dataset | None = None,
) -> datasets.Dataset:
    """The critic's training rows, as :data:`FEATURES` says, in seeded order.

    Verdict rows (`yes` and `no`, balanced for each instruction), then as a share of as many the critic's own lists of
    questions (half of it at most) and agreed answers to them, then `previous` rows while there is room, then `replay`
    rows at the share `settings.replay`. Verdicts under any instruction count, not only an episode's own. `style` is that
    of the critic's prompts. `replay` and `previous` need the columns prompt, completion and images.
    """
    known, table = {episode.episode_id: episode for episode in episodes}, FrameTable(frames)
    asked = {question.question_id: question for question in questions}
    answered = {answer.question_id: answer for answer in answers}
    room = _own_room(settings)
    judged = _consistent(_verdict_rows(known, table, asked, verdicts, relabels, style))
    units = _balanced(judged, settings.negatives_per_positive, seed, repeats=settings.repeats)
    own = _take(units, int(room / (1 + settings.questions_per_verdict)))

    agreed = _consistent(_question_rows(known, table, asked, answered, verdicts, relabels, style))
    closed = _balanced([row for row in agreed if is_yes_no(row.prompt)], 1.0, seed)
    opened = [[row] for row in agreed if not is_yes_no(row.prompt)]
    units = sorted(closed + opened, key=lambda unit: _row_rank(seed, unit[0]))
    share = min(room - len(own), int(settings.questions_per_verdict * len(own)))
    asking = sorted(_asking_rows(known, table, verdicts, style), key=lambda row: _row_rank(seed, row))
    own += _take([[row] for row in asking], share // 2)
    own += _take(units, share - min(len(asking), share // 2))
    return _assemble(own, settings, seed, replay, previous)


def actor_rows(
    episodes: Sequence[Episode],
    steps: Iterable[Step],
    frames: Iterable[Frame],
    verdicts: Iterable[Verdict],
    relabels: Iterable[Relabel],
    settings: DatasetSettings,
    *,
    seed: int,
    history: int = 0,
    style: PromptStyle = "brief",
    skill_set: str = "household",
    replay: datasets.Dataset | None = None,
    previous: datasets.Dataset | None = None,
) -> datasets.Dataset:
    """The actor's training rows: (instruction, frame t) -> action t, as :data:`FEATURES` says, in seeded order.

    From episodes accepted as done under their own instruction and from accepted relabels, both cut at the frame where
    the instruction was achieved, as far as is known, and ended with `Done`; then from pairs of them that are joined to
    instructions of two steps. Malformed actions, steps that led back to the same picture and turns back are left out. `history`
    (the number of own actions that the prompt carries), `style` and `skill_set` are those of the rollout: a row under
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
    trajectories.sort(key=lambda item: _rank(seed, item.episode.episode_id, item.instruction, item.end))

    def prompt(instruction: str, before: Sequence[str]) -> str:
        return act_prompt(instruction, before[-history:] if history else (), style, skill_set)

    def rows_of(trajectory: _Trajectory, before: Sequence[str] = ()) -> list[_Row]:
        taken = by_episode.get(trajectory.episode.episode_id, [])
        # Without a memory nobody would know that anything was tried.
        recoveries = settings.recoveries and history > 0
        return _trajectory_rows(trajectory, taken, table, prompt, before, recoveries=recoveries)

    units = [rows_of(trajectory) for trajectory in trajectories]
    # Without a memory nothing would tell the second half from the first.
    each = settings.compositions if history else 0
    deeds = {
        item: deeds_of(by_episode.get(item.episode.episode_id, [])[: item.end], table) for item in trajectories if each
    }
    for first, second in _compositions(deeds, known.values(), each, seed):
        steps_before = by_episode.get(first.episode.episode_id, [])[: first.end]
        before = [step.action for step in steps_before if step.action != "Done"]
        later = rows_of(second, before)
        units.append([*rows_of(first), *_at_the_seam(first, later, table), *later])
    seen: set[tuple[str, str, str]] = set()
    fresh: list[list[_Row]] = []
    for unit in units:
        fresh.append([])
        for row in unit:
            shown = (*row.sight, row.completion)
            if shown not in seen:
                seen.add(shown)
                fresh[-1].append(row)
    return _assemble(_take(fresh, _own_room(settings)), settings, seed, replay, previous)


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
        for joined in sorted(partners, key=lambda text: _rank(seed, first.episode.episode_id, text))[:each]:
            start = replace(first, instruction=joined, whole=False, source="composed")
            pairs.append((start, replace(partners[joined], instruction=joined, source="composed")))
    # Where there is no room for all, it is not the first scenes that get theirs.
    return sorted(pairs, key=lambda pair: _rank(seed, "composed", pair[0].episode.episode_id, pair[0].instruction))


_BACK = {"RotateLeft": "RotateRight", "RotateRight": "RotateLeft", "LookUp": "LookDown", "LookDown": "LookUp"}
"""Turns, and the turns back."""
_WALKING = frozenset({"Approach", "Walk"})


def _at_the_seam(first: _Trajectory, later: Sequence[_Row], frames: FrameTable) -> list[_Row]:
    """What comes next where the first half of a composition ended; without it, Done would be all that is learned of that.

    Nobody knows which way the second thing is from there. But a half that begins by looking around may begin anywhere.
    """
    for row in later[:1]:
        action = parse_action(row.completion)
        if row.frame_index == 0 and action is not None and action.verb in _BACK:
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
) -> list[_Row]:
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

    def row(index: int, completion: str, source: str, also: Sequence[str] = ()) -> _Row:
        image, told = frames.image(episode.episode_id, index), trajectory.instruction
        shown = prompt(told, [*actions[: len(before) + index], *also])
        return _Row(shown, completion, image, source, episode, told, index, **trajectory.ids)

    # Never the last deed: whoever opened the fridge before it closed it sees in the end what it saw before both.
    last = next((deed.step for deed in reversed(deeds_of(steps, frames)) if deed.seen), end)
    wasted = _in_circles(episode.episode_id, 0, last, frames) | _in_circles(episode.episode_id, last + 1, end, frames)
    rows: list[_Row] = []
    turned = ""
    for step in steps:
        action = parse_action(step.action)
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
    action = parse_action(step.action) if step.well_formed else None
    return action is not None and action.verb in _WALKING


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


def _own_room(settings: DatasetSettings) -> int:
    return int(settings.max_rows * (1 - settings.replay))


def _plain(dataset: datasets.Dataset, indices: Sequence[int], source: str | None) -> list[dict[str, Any]]:
    """Rows of another dataset in our columns; `source` overrides where they say they come from."""
    undecoded = dataset.select(indices).cast_column("images", datasets.List(datasets.Image(decode=False)))
    rows = []
    for given in undecoded:
        row: dict[str, Any] = {name: [] if name == "frame_indices" else "" for name in FEATURES}
        row.update((name, value) for name, value in cast(dict[str, Any], given).items() if name in FEATURES)
        if any(image["bytes"] is None for image in row["images"]):
            raise ArtifactError("a dataset to rehearse from must embed its pictures, got a path to one")
        row["images"] = [{"bytes": image["bytes"], "path": None} for image in row["images"]]
        row["source"] = source or row["source"]
        rows.append(row)
    return rows


def _assemble(
    own: Sequence[_Row],
    settings: DatasetSettings,
    seed: int,
    replay: datasets.Dataset | None,
    previous: datasets.Dataset | None,
) -> datasets.Dataset:
    """Own rows, earlier ones and rehearsal in one seeded order."""
    rows = [row.columns() for row in own]
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    if previous is not None and settings.reuse_previous_rounds:
        kept = [index for index, source in enumerate(previous["source"]) if source != REHEARSAL]
        kept = sorted(generator.permutation(kept)[: max(0, _own_room(settings) - len(rows))].tolist())
        rows += _plain(previous, kept, None)
    if replay is not None and settings.replay > 0:
        wanted = settings.max_rows
        if settings.replay < 1:
            wanted = round(len(rows) * settings.replay / (1 - settings.replay))
        wanted = min(wanted, settings.max_rows - len(rows), len(replay))
        rows += _plain(replay, sorted(generator.permutation(len(replay))[:wanted].tolist()), REHEARSAL)
    order = generator.permutation(len(rows))
    columns = {name: [rows[index][name] for index in order] for name in FEATURES}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def lineage(dataset: datasets.Dataset) -> list[Lineage]:
    """What each row of a dataset version is made of, without its pictures."""
    slim = dataset.remove_columns(["images"])
    rows = []
    for number, given in enumerate(slim):
        row = cast(dict[str, Any], given)
        row["prompt"], row["completion"] = row["prompt"][0]["content"], row["completion"][0]["content"]
        rows.append(Lineage(row=number, **row))
    return rows


def validate_rows(dataset: datasets.Dataset, name: str) -> None:
    """Refuses rows that a trainer would choke on or silently train without pictures.

    Raises ArtifactError that gathers all faults: a turn missing or empty, no picture, one that is not embedded or
    cannot be decoded (one in a hundred is tried), or a literal image token in a text, which trainers take for a
    placeholder.
    """
    faults = []
    undecoded = dataset.cast_column("images", datasets.List(datasets.Image(decode=False)))
    for number, given in enumerate(undecoded):
        row = cast(dict[str, Any], given)
        for column, role in (("prompt", "user"), ("completion", "assistant")):
            turns = row[column]
            if [turn["role"] for turn in turns] != [role] or not turns[0]["content"].strip():
                faults.append(f"row {number}: {column} must be one {role} turn with text")
            elif "<image>" in turns[0]["content"]:
                faults.append(f"row {number}: {column} holds a literal <image>")
        if not row["images"] or any(not image["bytes"] for image in row["images"]):
            faults.append(f"row {number}: must embed at least one picture")
        elif number % 100 == 0:
            try:
                decode_picture(row["images"][0]["bytes"])
            except ArtifactError as error:
                faults.append(f"row {number}: {error}")
    if faults:
        shown = "; ".join(faults[:5])
        raise ArtifactError(f"dataset {name} has {len(faults)} faults in {len(dataset)} rows: {shown}")


def _size_category(rows: int) -> str:
    for limit, category in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if rows < limit:
            return category
    return "n>1M"


def _front_matter(configs: Mapping[str, datasets.Dataset], card: DatasetCard) -> str:
    data = DatasetCardData(
        license=card.license,
        pretty_name=card.pretty_name,
        language=["en"],
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        source_datasets=["original"],
        task_categories=["image-text-to-text", "visual-question-answering", "robotics"],
        size_categories=[_size_category(sum(len(dataset) for dataset in configs.values()))],
        tags=["selu", "embodied", "self-learning"],
    )
    infos = datasets.info.DatasetInfosDict()
    for config, dataset in configs.items():
        split = datasets.SplitInfo(name="train", num_examples=len(dataset))
        infos[config] = datasets.DatasetInfo(
            config_name=config, features=dataset.features, splits=datasets.SplitDict({"train": split})
        )
    infos.to_dataset_card_data(data)
    fields = cast(dict[str, Any], cast(Any, data).to_dict())
    fields["configs"] = [
        {"config_name": config, "data_files": [{"split": "train", "path": f"data/{config}-train.parquet"}]}
        for config in configs
    ]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _card_text(configs: Mapping[str, datasets.Dataset], card: DatasetCard) -> str:
    lines = [f"---\n{_front_matter(configs, card)}---\n", f"# {card.pretty_name}\n", f"{card.description}\n"]
    lines.append(
        f"`{card.name}`, round {card.round}. Labels were made by the critic model itself; no ground truth of the world "
        "and no human annotation is in them.\n"
    )
    for config, dataset in configs.items():
        lines.append(f"## {config}: {len(dataset)} rows\n\n| source | completion | rows |\n|---|---|---|")
        counts: dict[tuple[str, str], int] = {}
        for source, completion in zip(dataset["source"], dataset["completion"], strict=True):
            text = completion[0]["content"]
            kind = text if text in ("yes", "no", "Done") else "other"
            counts[source, kind] = counts.get((source, kind), 0) + 1
        lines += [f"| {source} | {kind} | {count} |" for (source, kind), count in sorted(counts.items())]
        lines.append("")
    for title, fields in (("Parents", card.parents), ("Models", card.revisions)):
        if fields:
            lines.append(f"## {title}\n\n" + "\n".join(f"- {key}: `{fields[key]}`" for key in sorted(fields)) + "\n")
    recipe = json.dumps(card.recipe, sort_keys=True, indent=2, ensure_ascii=False)
    lines.append(f"## Recipe\n\n```json\n{recipe}\n```\n")
    lines.append("Every row names its episode, frames, question, verdict and relabel, and the models behind them.")
    return "\n".join(lines) + "\n"


def save_dataset_version(path: Path, configs: Mapping[str, datasets.Dataset], card: DatasetCard) -> None:
    """Writes a dataset version into the folder `path`: data/<config>-train.parquet, README.md and lineage.json.

    `configs` maps a config's name (`critic`, `actor`) to its rows. Equal rows and card give equal bytes. Raises
    ArtifactError if a row is unfit for training.
    """
    for config, dataset in configs.items():
        validate_rows(dataset, config)
    (path / "data").mkdir(parents=True, exist_ok=True)
    for config, dataset in configs.items():
        table = cast(pa.Table, dataset.with_format("arrow")[:]).combine_chunks()
        # Only the features: the library's own metadata carries a fingerprint that differs from run to run.
        features = {"info": {"features": cast(Any, dataset.features).to_dict()}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features, sort_keys=False)})
        pq.write_table(
            table, path / "data" / f"{config}-train.parquet", compression="zstd", row_group_size=_ROWS_PER_GROUP
        )
    facts = card.model_dump(mode="json") | {"rows": {config: len(dataset) for config, dataset in configs.items()}}
    (path / "lineage.json").write_text(json.dumps(facts, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
    (path / "README.md").write_text(_card_text(configs, card), encoding="utf-8")
