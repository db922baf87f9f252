"""What the report of a round shows, gathered from the store into plain values: no HTML here.

The one place beside evaluation that takes references to ground truth, for the reader's eyes alone. Episodes are chosen
by the order of their ids, which are hashes: nobody picked the pretty ones.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from selu.errors import ArtifactError
from selu.evaluation import MetricRow, truth_of_instruction
from selu.prompting import prompts_digest
from selu.records import Episode, Frame, OracleEpisode, OracleStep, Question, Record, Relabel, Step, Task, Verdict
from selu.rounds import Round, StageName, find_metric, round_metrics
from selu.store import ArtifactRef, OracleRef, Store, read_table

__all__ = [
    "ArtifactLine",
    "Asked",
    "Comparison",
    "Confusion",
    "Curve",
    "DatasetView",
    "Film",
    "Group",
    "Labels",
    "Pair",
    "Picture",
    "RelabelView",
    "Report",
    "Sample",
    "StageView",
    "VerdictView",
    "gather",
]

_R = TypeVar("_R", bound=Record)

_FILMS_OF_A_KIND = 3
_SAMPLES_OF_A_SOURCE = 3
_MOST_SAMPLES = 12
_MOST_PICTURES = 14
# The embedded world's frames are 96 pixels wide and stay as they are; a real simulator's would make the file too heavy.
_WIDEST_PICTURE = 128

_STAGES: dict[StageName, tuple[str, str]] = {
    "rollout": ("Rollout", "The actor tries drawn instructions in its home. Nobody tells it whether it succeeded."),
    "frames": ("Frame extraction", "The pictures that the critic will look at are picked from each episode."),
    "self_asking": (
        "Self-asking",
        "The critic turns each instruction into questions, answers them and so gives a verdict.",
    ),
    "hindsight": ("Hindsight relabeling", "What a failed episode did achieve becomes its new instruction."),
    "critic_dataset": (
        "Dataset version",
        "What the critic is sure of, asked in several ways, becomes its training rows.",
    ),
    "critic_finetuning": ("Critic fine-tuning", "The critic learns from its own labels (a LoRA adapter)."),
    "rejudging": (
        "Re-judging",
        "The improved critic judges and relabels every episode again; that is the actor's data.",
    ),
    "actor_finetuning": (
        "Actor fine-tuning",
        "The actor learns from what the improved critic accepted (a LoRA adapter).",
    ),
    "evaluation": ("Evaluation", "Both meet frozen tests. The truth is read here, and nowhere before."),
}


# What is shown -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One row of the table of results."""

    subject: str
    label: str
    note: str
    probe: str
    before: MetricRow | None
    after: MetricRow | None
    gain: MetricRow | None
    marks: tuple[tuple[str, float], ...] = ()

    @property
    def n(self) -> int:
        """Episodes behind the figures."""
        row = self.after or self.before
        return row.n if row is not None else 0


@dataclass(frozen=True)
class StageView:
    """One stage of the round and the time it took."""

    number: int
    title: str
    what: str
    seconds: float
    made_in_seconds: float
    cached: bool
    reused: int
    tasks: int

    @property
    def bar_seconds(self) -> float:
        """The work behind the stage: a reused one is drawn with the time that it took when it was made."""
        return self.made_in_seconds if self.cached else self.seconds


@dataclass(frozen=True)
class Picture:
    """A frame of a film strip with the action that the actor wrote on seeing it; or, if `skipped`, a gap."""

    index: int
    image: str
    action: str | None
    well_formed: bool
    looked_at: bool
    achieved: bool
    skipped: int = 0


@dataclass(frozen=True)
class Asked:
    """A question that the critic put to itself, and its answer."""

    text: str
    expected: str
    answer: str
    confidence: float
    spoke_for: str
    frame_index: int
    kind: str


@dataclass(frozen=True)
class VerdictView:
    """What the critic made of an instruction."""

    verdict: str
    confidence: float
    accepted: bool
    reason: str
    written: str
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class RelabelView:
    """An instruction found in hindsight; `truth` is for the reader."""

    instruction: str
    frame_index: int
    confidence: float
    accepted: bool
    reason: str
    asked: tuple[Asked, ...]
    judged_again: tuple[Asked, ...]
    truth: bool | None


@dataclass(frozen=True)
class Film:
    """One episode as a strip of frames with all that was said about it."""

    episode: Episode
    pictures: tuple[Picture, ...]
    verdict: VerdictView | None
    earlier: VerdictView | None
    relabels: tuple[RelabelView, ...]
    rejected: tuple[RelabelView, ...]
    truth: bool | None
    refused: tuple[tuple[int, str, str], ...] = field(default=())


@dataclass(frozen=True)
class Group:
    """Episodes with one outcome: how many there are, and a few of them."""

    title: str
    tone: Literal["right", "wrong", "unsure"]
    count: int
    films: tuple[Film, ...]


@dataclass(frozen=True)
class Pair:
    """What the critic said, right and wrong beside each other."""

    title: str
    what: str
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Confusion:
    """Counts of episodes: what the critic labelled (yes, no, none) against the truth."""

    yes_done: int
    yes_not: int
    no_done: int
    no_not: int
    none_done: int
    none_not: int


@dataclass(frozen=True)
class Labels:
    """Quality of the labels of one judging."""

    title: str
    trains: str
    rates: tuple[tuple[str, str, MetricRow], ...]
    confusion: Confusion
    relabels_right: int
    relabels_wrong: int
    relabels_unknown: int
    relabels_rejected: int
    verdict_reasons: tuple[tuple[str, int], ...]
    relabel_reasons: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Curve:
    """Loss of a fine-tuning, step by step."""

    who: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Sample:
    """A training row, decoded."""

    image: str
    prompt: str
    completion: str
    source: str


@dataclass(frozen=True)
class DatasetView:
    """A dataset version: how many rows of which source, and a few of them."""

    who: str
    rows: int
    sources: tuple[tuple[str, int], ...]
    completions: tuple[tuple[str, int], ...]
    samples: tuple[Sample, ...]
    digest: str


@dataclass(frozen=True)
class ArtifactLine:
    """An artifact of the round."""

    role: str
    kind: str
    key: str
    digest: str
    stage: str
    size: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    title: str
    run: str
    round: int
    rounds: int
    seed: int
    started: str
    finished: str
    headline: str
    sentences: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    comparisons: tuple[Comparison, ...]
    references: tuple[Comparison, ...]
    metrics: tuple[MetricRow, ...]
    stages: tuple[StageView, ...]
    pairs: tuple[Pair, ...]
    hindsight: bool
    self_asking: bool
    labels: tuple[Labels, ...]
    curves: tuple[Curve, ...]
    datasets: tuple[DatasetView, ...]
    artifacts: tuple[ArtifactLine, ...]
    revisions: tuple[tuple[str, str], ...]
    configuration: str
    prompts: tuple[tuple[str, str], ...]
    prompts_digest: str
    prompts_changed: bool
    embedded_world: bool

    @property
    def total_seconds(self) -> float:
        """Wall-clock time of this run."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def longest(self) -> float:
        """The longest bar among the stages."""
        return max((stage.bar_seconds for stage in self.stages), default=0.0) or 1.0


def gather(store: Store, finished: Round) -> Report:
    """Everything about a finished round that its report shows.

    Raises:
        ArtifactError: something that the round made is missing, altered or not readable.
    """
    rows = round_metrics(store, finished)
    comparisons = _comparisons(rows)
    home = _Home(store, finished)
    curves = tuple(
        curve
        for who, ref in (("critic", finished.critic_adapter), ("actor", finished.actor_adapter))
        if (curve := _curve(store, who, ref)) is not None
    )
    datasets = tuple(
        _dataset(store, who, ref)
        for who, ref in (("critic", finished.critic_dataset), ("actor", finished.actor_dataset))
    )
    settings = finished.settings
    return Report(
        title=f"{finished.run}, round {finished.round}",
        run=finished.run,
        round=finished.round,
        rounds=settings.rounds,
        seed=settings.seed,
        started=_moment(finished.started),
        finished=_moment(finished.finished),
        headline=_headline(comparisons, finished.round),
        sentences=_sentences(comparisons, rows),
        facts=home.facts(datasets),
        comparisons=comparisons,
        references=_references(rows),
        metrics=tuple(rows),
        stages=tuple(
            StageView(
                number=number,
                title=_STAGES[stage.name][0],
                what=_STAGES[stage.name][1],
                seconds=stage.seconds,
                made_in_seconds=stage.made_in_seconds,
                cached=stage.cached,
                reused=stage.reused,
                tasks=stage.tasks,
            )
            for number, stage in enumerate(finished.stages, 1)
        ),
        pairs=home.pairs(),
        hindsight=settings.hindsight.enabled,
        self_asking=settings.self_asking.enabled,
        labels=home.labels(rows),
        curves=curves,
        datasets=datasets,
        artifacts=_artifacts(store, finished),
        revisions=tuple(sorted(finished.revisions.items())),
        configuration=yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        prompts=_prompts(),
        prompts_digest=prompts_digest(),
        prompts_changed=_prompts_changed(store, finished),
        embedded_world=settings.world.local_executable_path is None and settings.world.commit_id is None,
    )


def _moment(iso: str) -> str:
    """``2026-01-31 12:45 UTC`` of an ISO time."""
    return f"{iso[:16].replace('T', ' ')} UTC"


# Results -------------------------------------------------------------------------------------------------------------

_RESULTS = (
    (
        "critic",
        "direct",
        "balanced_accuracy",
        "Critic, asked directly",
        "“Was it done?” Share of right verdicts; guessing gives 50 %.",
    ),
    (
        "critic",
        "self_asking",
        "balanced_accuracy",
        "Critic, by self-asking",
        "The same verdict through its own questions.",
    ),
    ("actor", "selu", "success_rate", "Actor", "Tasks whose goal holds when the episode ends."),
)


def _comparison(
    rows: Sequence[MetricRow], subject: str, method: str, metric: str, probe: str, label: str, note: str
) -> Comparison:
    before, after, gain = (
        find_metric(rows, subject=subject, phase=phase, probe=probe, method=method, metric=name)
        for phase, name in (("before", metric), ("after", metric), ("after", f"{metric}_gain"))
    )
    return Comparison(subject, label, note, probe, before, after, gain, _marks(rows, subject, probe))


def _comparisons(rows: Sequence[MetricRow]) -> tuple[Comparison, ...]:
    """The headline's table: each way of measuring on A and on B, and what else was asked in general."""
    found = [
        _comparison(rows, subject, method, metric, probe, label, note)
        for subject, method, metric, label, note in _RESULTS
        for probe in ("A", "B")
    ]
    general = {
        (row.method, row.metric, row.probe): None
        for row in rows
        if row.subject == "general" and not row.metric.endswith("_gain")
    }
    found += [
        _comparison(
            rows, "general", method, metric, probe, f"General questions, {method}", f"Does it forget? {_plain(metric)}."
        )
        for method, metric, probe in general
    ]
    return tuple(item for item in found if item.before or item.after)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _marks(rows: Sequence[MetricRow], subject: str, probe: str) -> tuple[tuple[str, float], ...]:
    if subject == "critic":
        return (("guessing", 0.5),)
    if subject != "actor":
        return ()
    found = (
        find_metric(rows, subject="actor", phase="before", probe=probe, method=method, metric="success_rate")
        for method in ("random", "planner")
    )
    return tuple((f"{row.method} policy", row.rate) for row in found if row is not None)


def _references(rows: Sequence[MetricRow]) -> tuple[Comparison, ...]:
    """Floors, ceilings and blinds."""
    wanted = {"actor": ("success_rate", "selu"), "critic": ("balanced_accuracy", "direct")}
    kinds = {
        (row.subject, row.method, row.probe): None
        for row in rows
        if row.subject in wanted
        and row.probe in ("A", "B")
        and row.metric == wanted[row.subject][0]
        and row.method not in ("direct", "self_asking", "selu")
    }
    labels = {
        "random": ("Random policy", "the actor's floor"),
        "planner": ("Planner", "the actor's ceiling: it knows the truth"),
        "noisy planner": ("Planner with 30 % random actions", "between floor and ceiling"),
        "blind:blank": ("Critic before a blank picture", "what the words alone give away"),
        "blind:no_image": ("Critic without a picture", "what the words alone give away"),
        "blind:shuffled": ("Critic before another episode's picture", "what any picture gives away"),
    }
    return tuple(
        _comparison(rows, subject, method, wanted[subject][0], probe, *labels.get(method, (method, "")))
        for subject, method, probe in sorted(kinds)
    )


def _share(value: float) -> str:
    return f"{100 * value:.0f} %" if math.isfinite(value) else "–"


def _pick(comparisons: Iterable[Comparison], label: str, probe: str) -> Comparison | None:
    return next((item for item in comparisons if (item.label, item.probe) == (label, probe)), None)


def _headline(comparisons: Sequence[Comparison], number: int) -> str:
    """The result in one sentence, without judging it."""
    critic, actor = _pick(comparisons, "Critic, asked directly", "A"), _pick(comparisons, "Actor", "A")
    parts = []
    for item, who, what in ((critic, "the critic", "right verdicts"), (actor, "the actor", "tasks done")):
        if item is None:
            continue
        if item.before and item.after:
            parts.append(f"{who} went from {_share(item.before.rate)} to {_share(item.after.rate)} {what}")
        elif row := item.before or item.after:
            parts.append(f"{who} stands at {_share(row.rate)} {what}")
    if not parts:
        return "This round has no figures yet."
    time = "In one round" if number == 1 else f"In round {number}"
    return f"{time} without reward or human label, {' and '.join(parts)}."


def _sentences(comparisons: Sequence[Comparison], rows: Sequence[MetricRow]) -> tuple[str, ...]:
    """What to make of the headline: whether the change is measurable, and whether it carries over."""
    found = []
    for label, who in (("Critic, asked directly", "critic"), ("Actor", "actor")):
        for probe, where in (("A", "in the rooms it practised in"), ("B", "in rooms it never visited")):
            item = _pick(comparisons, label, probe)
            if item is None or item.gain is None or not math.isfinite(item.gain.rate):
                continue
            low, high = item.gain.low, item.gain.high
            size = f"{100 * item.gain.rate:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}".replace(
                "-", "\u2212"
            )
            if not (math.isfinite(low) and math.isfinite(high)):
                change, size = "changed", f"{100 * item.gain.rate:+.1f} points".replace("-", "\u2212")
            elif low > 0:
                change = "got better"
            elif high < 0:
                change = "got worse"
            else:
                change = "did not change measurably"
            found.append(f"The {who} {change} {where} ({size}).")
    labels = find_metric(rows, subject="labels", phase="after", probe="learning", method="selu", metric="false_rate")
    if labels is not None and labels.n:
        found.append(f"Of the {labels.n} “done” labels that taught the actor, {_share(labels.rate)} were false.")
    return tuple(found)


# Episodes ------------------------------------------------------------------------------------------------------------


def _read_all(store: Store, refs: Iterable[ArtifactRef], table: str, kind: type[_R]) -> list[_R]:
    return [row for ref in refs for row in read_table(store.path(ref) / f"{table}.parquet", kind)]


def _columns(path: Path, columns: Sequence[str], *, filters: Any = None) -> list[dict[str, Any]]:
    """Some columns of a Parquet file.

    Raises:
        ArtifactError: it is missing or no readable Parquet.
    """
    try:
        rows: list[dict[str, Any]] = pq.read_table(path, columns=list(columns), filters=filters).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    return rows


class _Home:
    """The episodes of a round with everything that was said about them, and the truth."""

    def __init__(self, store: Store, finished: Round) -> None:
        self.store, self.finished = store, finished
        self.episodes: dict[str, Episode] = {}
        self._shard_of: dict[str, ArtifactRef] = {}
        for ref in finished.episodes:
            for episode in read_table(store.path(ref) / "episodes.parquet", Episode):
                self.episodes[episode.episode_id], self._shard_of[episode.episode_id] = episode, ref
        self.steps: dict[str, list[Step]] = {}
        for step in _read_all(store, finished.episodes, "steps", Step):
            self.steps.setdefault(step.episode_id, []).append(step)
        self.looked_at = {
            (row["episode_id"], row["frame_index"])
            for ref in finished.frames
            for row in _columns(store.path(ref) / "selected_frames.parquet", ["episode_id", "frame_index"])
        }
        first = (finished.judgements, finished.relabels)
        again = (finished.rejudgements, finished.rerelabels)
        self.before = _Judging(store, *first, self.episodes)
        self.after = _Judging(store, *again, self.episodes)
        self._read_truth(finished.oracle)

    def _read_truth(self, refs: Sequence[OracleRef]) -> None:
        self.oracle_steps: dict[tuple[str, int], OracleStep] = {}
        self.truth: dict[str, bool | None] = {}
        aimless = {
            row.task_id
            for row in read_table(self.store.path(self.finished.tasks) / "tasks.parquet", Task)
            if not row.goal
        }
        for ref in refs:
            folder = self.store.path(ref)
            for step in read_table(folder / "oracle_steps.parquet", OracleStep):
                self.oracle_steps[step.episode_id, step.frame_index] = step
            for row in read_table(folder / "oracle_episodes.parquet", OracleEpisode):
                self.truth[row.episode_id] = row.success
        for episode in self.episodes.values():
            # The world cannot tell whether an instruction of the user's own was fulfilled; its words sometimes do.
            if episode.task_id in aimless:
                self.truth[episode.episode_id] = self._truth_of(episode.episode_id, episode.length, episode.instruction)

    def _truth_of(self, episode_id: str, frame_index: int, instruction: str) -> bool | None:
        step = self.oracle_steps.get((episode_id, frame_index))
        return None if step is None else truth_of_instruction(instruction, step.facts)

    def _relabel_truth(self, row: Relabel) -> bool | None:
        return self._truth_of(row.episode_id, row.frame_index, row.instruction)

    def facts(self, datasets: Sequence[DatasetView]) -> tuple[tuple[str, str], ...]:
        """Round figures of what was done."""
        asked = len(self.before.questions) + len(self.after.questions)
        scenes = len({row.scene for row in self.episodes.values()})
        return (
            ("episodes", f"{len(self.episodes):,}"),
            ("rooms", f"{scenes:,}"),
            ("actions", f"{sum(map(len, self.steps.values())):,}"),
            ("questions it asked itself", f"{asked:,}"),
            ("training rows", f"{sum(dataset.rows for dataset in datasets):,}"),
            ("human labels", "0"),
        )

    # Film strips

    def pairs(self) -> tuple[Pair, ...]:
        """Right and wrong labels of the improved critic beside each other."""
        shown: set[str] = set()
        relabels: dict[bool, dict[str, None]] = {True: {}, False: {}}
        for row in sorted(self.after.relabels, key=lambda row: (row.episode_id, row.frame_index, row.relabel_id)):
            if row.accepted and row.episode_id in self.episodes:
                relabels[self._relabel_truth(row) is True].setdefault(row.episode_id)
        verdicts: dict[tuple[str, bool], list[str]] = {}
        for episode_id in sorted(self.episodes):
            verdict = self.after.own.get(episode_id)
            said = verdict.verdict if verdict is not None and verdict.accepted else "unsure"
            verdicts.setdefault((said, self.truth.get(episode_id) is True), []).append(episode_id)

        # One that was relabeled did teach something.
        relabeled = {*relabels[True], *relabels[False]}
        aside = [item for done in (False, True) for item in verdicts.get(("unsure", done), []) if item not in relabeled]

        def group(title: str, tone: Literal["right", "wrong", "unsure"], ids: Iterable[str]) -> Group:
            ids = list(ids)
            chosen = sorted(ids, key=lambda item: (item in shown, item))[:_FILMS_OF_A_KIND]
            shown.update(chosen)
            return Group(title, tone, len(ids), tuple(self._film(item) for item in chosen))

        return (
            Pair(
                "“Done”",
                "The critic accepted the episode under its own instruction. The actor learns from all of these.",
                (
                    group("It was done", "right", verdicts.get(("yes", True), [])),
                    group("It was not", "wrong", verdicts.get(("yes", False), [])),
                ),
            ),
            Pair(
                "Relabeled in hindsight",
                "The instruction was missed, but the critic found out what was achieved instead. The actor learns from "
                "these too, up to the picture in which it was achieved.",
                (
                    group("It did achieve that", "right", relabels[True]),
                    group("It did not", "wrong", relabels[False]),
                ),
            ),
            Pair(
                "“Not done”",
                "The critic rejected the episode under its own instruction.",
                (
                    group("It was not done", "right", verdicts.get(("no", False), [])),
                    group("It was, and the critic missed it", "wrong", verdicts.get(("no", True), [])),
                ),
            ),
            Pair(
                "No label",
                "Its ways of asking disagreed, or it was not sure enough: nothing is learned from these.",
                (group("Left aside", "unsure", aside),),
            ),
        )

    def _film(self, episode_id: str) -> Film:
        episode = self.episodes[episode_id]
        rows = sorted(
            (row for row in self.after.relabels if row.episode_id == episode_id),
            key=lambda row: (row.frame_index, row.instruction, row.relabel_id),
        )
        views = [self.after.relabel_view(row, self._relabel_truth(row)) for row in rows]
        steps = sorted(self.steps.get(episode_id, []), key=lambda step: step.step)
        refused = []
        for step in steps:
            result = self.oracle_steps.get((episode_id, step.step + 1))
            if result is not None and step.well_formed and not result.action_success:
                refused.append((step.step, step.action, result.error_message))
        achieved = {row.frame_index for row in rows if row.accepted}
        return Film(
            episode=episode,
            pictures=tuple(self._pictures(episode, steps, achieved)),
            verdict=self.after.verdict_view(episode_id),
            earlier=self.before.verdict_view(episode_id),
            relabels=tuple(view for view in views if view.accepted),
            rejected=tuple(view for view in views if not view.accepted),
            truth=self.truth.get(episode_id),
            refused=tuple(refused),
        )

    def _pictures(self, episode: Episode, steps: Sequence[Step], achieved: set[int]) -> list[Picture]:
        wanted = _most_telling(
            episode.length, {index for owner, index in self.looked_at if owner == episode.episode_id} | achieved
        )
        images = self._images(episode.episode_id)
        actions = {step.step: step for step in steps}
        found: list[Picture] = []
        last = -1
        for index in wanted:
            if index - last > 1:
                found.append(Picture(index, "", None, True, False, False, skipped=index - last - 1))
            step = actions.get(index)
            found.append(
                Picture(
                    index=index,
                    image=images.get(index, ""),
                    action=None if step is None else step.action,
                    well_formed=step is None or step.well_formed,
                    looked_at=(episode.episode_id, index) in self.looked_at,
                    achieved=index in achieved,
                )
            )
            last = index
        return found

    def _images(self, episode_id: str) -> dict[int, str]:
        path = self.store.path(self._shard_of[episode_id]) / "frames.parquet"
        rows = _columns(path, list(Frame.model_fields), filters=[("episode_id", "==", episode_id)])
        return {row["frame_index"]: picture_uri(row["image"]) for row in rows}

    # Labels

    def labels(self, rows: Sequence[MetricRow]) -> tuple[Labels, ...]:
        """Quality of both judgings' labels."""
        return (
            self._labels(rows, "before", self.before, "The critic as it was", "taught the critic"),
            self._labels(rows, "after", self.after, "The improved critic", "taught the actor"),
        )

    def _labels(self, rows: Sequence[MetricRow], phase: str, judging: _Judging, title: str, trains: str) -> Labels:
        counts: Counter[tuple[str, bool]] = Counter()
        for episode_id in self.episodes:
            verdict = judging.own.get(episode_id)
            said = verdict.verdict if verdict is not None and verdict.accepted else "none"
            counts[said, self.truth.get(episode_id) is True] += 1
        accepted = Counter(self._relabel_truth(row) for row in judging.relabels if row.accepted)
        names = (
            ("coverage", "episodes that gave a “done” label"),
            ("false_rate", "“done” labels that are false"),
            ("false_rate_verdicts", "… under the own instruction"),
            ("false_rate_relabels", "… relabeled in hindsight"),
            ("false_rate_no", "“not done” labels that are false"),
        )
        figures = (
            (
                metric,
                words,
                find_metric(rows, subject="labels", phase=phase, probe="learning", method="selu", metric=metric),
            )
            for metric, words in names
        )
        return Labels(
            title=title,
            trains=trains,
            rates=tuple((metric, words, row) for metric, words, row in figures if row is not None),
            confusion=Confusion(
                yes_done=counts["yes", True],
                yes_not=counts["yes", False],
                no_done=counts["no", True],
                no_not=counts["no", False],
                none_done=counts["none", True],
                none_not=counts["none", False],
            ),
            relabels_right=accepted[True],
            relabels_wrong=accepted[False],
            relabels_unknown=accepted[None],
            relabels_rejected=sum(not row.accepted for row in judging.relabels),
            verdict_reasons=_reasons(row.reason for row in judging.own.values() if not row.accepted),
            relabel_reasons=_reasons(row.reason for row in judging.relabels if not row.accepted),
        )


class _Judging:
    """One judging of the round's episodes."""

    def __init__(
        self,
        store: Store,
        judgements: Sequence[ArtifactRef],
        relabels: Sequence[ArtifactRef],
        episodes: Mapping[str, Episode],
    ) -> None:
        asked = _read_all(store, [*judgements, *relabels], "questions", Question)
        self.questions = {row.question_id: row for row in asked}
        self.relabels = _read_all(store, relabels, "relabels", Relabel)
        self.own = {
            row.episode_id: row
            for row in _read_all(store, judgements, "verdicts", Verdict)
            if row.episode_id in episodes
            and row.instruction == episodes[row.episode_id].instruction
            and row.frame_index == episodes[row.episode_id].length
        }

    def _asked(self, entries: Iterable[Mapping[str, Any]]) -> tuple[Asked, ...]:
        found = []
        for entry in entries:
            question = self.questions.get(entry["question_id"])
            if question is not None:
                found.append(
                    Asked(
                        text=question.text,
                        expected=question.expected,
                        answer=entry["answer"],
                        confidence=entry["confidence"],
                        spoke_for=entry["spoke_for"],
                        frame_index=question.frame_index,
                        kind=question.kind,
                    )
                )
        return tuple(found)

    def verdict_view(self, episode_id: str) -> VerdictView | None:
        """The verdict under an episode's own instruction, with what was asked for it."""
        row = self.own.get(episode_id)
        if row is None:
            return None
        evidence = json.loads(row.evidence)
        return VerdictView(
            verdict=row.verdict,
            confidence=row.confidence,
            accepted=row.accepted,
            reason=row.reason,
            written=evidence.get("asked", {}).get("text", ""),
            asked=self._asked(evidence["questions"]),
        )

    def relabel_view(self, row: Relabel, truth: bool | None) -> RelabelView:
        """A relabel with what was asked for it."""
        evidence = json.loads(row.evidence)
        return RelabelView(
            instruction=row.instruction,
            frame_index=row.frame_index,
            confidence=row.confidence,
            accepted=row.accepted,
            reason=row.reason,
            asked=self._asked(evidence["questions"]),
            judged_again=self._asked(evidence.get("judged_again", {}).get("questions", [])),
            truth=truth,
        )


def _most_telling(length: int, telling: set[int]) -> list[int]:
    """Indices of the frames that a strip has room for: the start, the end, and those that the critic looked at."""
    everything = range(length + 1)
    if length < _MOST_PICTURES:
        return list(everything)
    ranked = sorted(everything, key=lambda index: (index not in {0, length}, index not in telling, -index))
    return sorted(ranked[:_MOST_PICTURES])


def _reasons(texts: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Reasons for rejection as kinds with counts, most frequent first."""
    return tuple(sorted(Counter(map(kind_of_reason, texts)).items(), key=lambda item: (-item[1], item[0])))


def kind_of_reason(reason: str) -> str:
    """A reason without what is special to its episode: quoted questions and answers, figures, what follows a colon."""
    text = re.sub(r"(?<!\w)'[^']*\?'(?!\w)", "a question", reason)
    text = re.sub(r"(?<!\w)'(?!yes'|no'|unsure')[^']*'(?!\w)", "…", text)
    text = re.sub(r"\s*\([^)]*\)", "", text)
    return re.split(r": |, was ", text, maxsplit=1)[0].strip()


# Training ------------------------------------------------------------------------------------------------------------


def _curve(store: Store, who: str, ref: ArtifactRef) -> Curve | None:
    path = store.path(ref) / "curves.parquet"
    if not path.exists():
        return None
    rows = _columns(path, ["step", "loss"])
    return Curve(who, tuple(row["step"] for row in rows), tuple(row["loss"] for row in rows)) if rows else None


def _dataset(store: Store, who: str, ref: ArtifactRef) -> DatasetView:
    """Counts of a dataset version, and the first rows of each source."""
    path = store.path(ref) / "data" / f"{who}-train.parquet"
    sources: Counter[str] = Counter()
    completions: Counter[str] = Counter()
    samples: dict[str, list[Sample]] = {}
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=500, columns=["prompt", "completion", "images", "source"]):
                said = [turns[0]["content"] for turns in batch.column("completion").to_pylist()]
                origin = batch.column("source").to_pylist()
                sources.update(origin)
                completions.update(said)
                for place, (source, completion) in enumerate(zip(origin, said, strict=True)):
                    few = samples.setdefault(source, [])
                    # Rows that differ in what they teach tell more than the first ones would.
                    if len(few) < _SAMPLES_OF_A_SOURCE and completion not in {row.completion for row in few}:
                        image = batch.column("images")[place].as_py()[0]["bytes"]
                        prompt = batch.column("prompt")[place].as_py()[0]["content"]
                        few.append(Sample(picture_uri(image), prompt, completion, source))
    except (pa.ArrowException, OSError, KeyError, IndexError, TypeError) as error:
        raise ArtifactError(f"the dataset {path} cannot be read: {error}") from error
    by_source = [rows for _, rows in sorted(samples.items())]
    turns = [rows[place] for place in range(_SAMPLES_OF_A_SOURCE) for rows in by_source if place < len(rows)]
    return DatasetView(
        who=who,
        rows=sum(sources.values()),
        sources=tuple(sources.most_common()),
        completions=tuple(completions.most_common(8)),
        samples=tuple(turns[:_MOST_SAMPLES]),
        digest=ref.digest,
    )


def picture_uri(image: bytes) -> str:
    """A picture as a data URI: as it is if it is small, else scaled down.

    Raises:
        ArtifactError: it is no picture.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            kind = opened.format
            if kind == "PNG" and opened.width <= _WIDEST_PICTURE:
                data, media = image, "image/png"
            else:
                small = opened.convert("RGB")
                small.thumbnail((_WIDEST_PICTURE * 2, _WIDEST_PICTURE * 2))
                buffer = io.BytesIO()
                small.save(buffer, format="WEBP", quality=80)
                data, media = buffer.getvalue(), "image/webp"
    except OSError as error:
        raise ArtifactError(f"a frame of {len(image)} bytes is not a picture: {error}") from error
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


# Lineage -------------------------------------------------------------------------------------------------------------

_ROLES: tuple[tuple[str, str], ...] = (
    ("tasks", "tasks"),
    ("episodes", "episodes"),
    ("oracle", "the truth (sealed)"),
    ("frames", "frames the critic looks at"),
    ("judgements", "first judging"),
    ("relabels", "relabels of the first judging"),
    ("contrasts", "further judgements"),
    ("critic_dataset", "critic's dataset version"),
    ("critic_adapter", "critic's adapter"),
    ("rejudgements", "re-judging"),
    ("rerelabels", "relabels of the re-judging"),
    ("actor_dataset", "actor's dataset version"),
    ("actor_adapter", "actor's adapter"),
    ("metrics", "figures"),
)


def _artifacts(store: Store, finished: Round) -> tuple[ArtifactLine, ...]:
    lines = []
    for name, role in _ROLES:
        value: Any = getattr(finished, name)
        refs: Sequence[ArtifactRef | OracleRef] = value if isinstance(value, tuple) else (value,)
        for number, ref in enumerate(refs, 1):
            manifest = store.manifest(ref)
            lines.append(
                ArtifactLine(
                    role=role if len(refs) == 1 else f"{role} {number}/{len(refs)}",
                    kind=ref.kind,
                    key=ref.key,
                    digest=manifest.digest,
                    stage=str(manifest.provenance.get("stage", "")),
                    size=manifest.size,
                    seconds=manifest.seconds,
                )
            )
    return tuple(lines)


def _prompts() -> tuple[tuple[str, str], ...]:
    """The prompt files and what stands in them."""
    files = sorted((resources.files("selu") / "prompts").iterdir(), key=lambda entry: entry.name)
    return tuple((entry.name, entry.read_text(encoding="utf-8")) for entry in files if entry.name.endswith(".txt"))


def _prompts_changed(store: Store, finished: Round) -> bool:
    """Whether the round was made with other prompt files than there are now."""
    for ref in finished.judgements[:1]:
        config = store.manifest(ref).provenance.get("config")
        if isinstance(config, dict) and "prompts" in config:
            return bool(config["prompts"] != prompts_digest())
    return False
