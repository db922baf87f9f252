"""The values that the report of a round consists of: what is shown, not how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from selu.evaluation import MetricRow
from selu.records import Episode
from selu.rounds import Decision
from selu.seen_rows import SeenRow

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
    "Seen",
    "StageView",
    "Trend",
    "TrendLine",
    "TrendPoint",
    "VerdictView",
]


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
class TrendPoint:
    """A figure after a round; round 0 is before the first one."""

    round: int
    value: float
    low: float = float("nan")
    high: float = float("nan")
    refused: bool = False


@dataclass(frozen=True)
class TrendLine:
    """A figure over rounds; `tone` says how it is drawn."""

    name: str
    tone: Literal["first", "second", "third", "limit"]
    points: tuple[TrendPoint, ...]


@dataclass(frozen=True)
class Trend:
    """Figures over rounds in one plot; `share`: they are drawn as percent."""

    title: str
    note: str
    lines: tuple[TrendLine, ...]
    share: bool = True


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
    starts: tuple[RelabelView, ...]
    """Good beginnings of what was told, which nobody says was done: they have no truth to be compared with."""
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
    starts: int
    relabels_rejected: int
    verdict_reasons: tuple[tuple[str, int], ...]
    relabel_reasons: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Curve:
    """Loss of a fine-tuning, step by step, and on the rows held out, where some were: (step, loss)."""

    who: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    validation: tuple[tuple[int, float], ...] = ()

    @property
    def kept(self) -> tuple[int, float] | None:
        """The step whose adapter was kept, with its loss on the rows held out; None: the last one's, and none were."""
        return min(self.validation, key=lambda point: point[1], default=None)


@dataclass(frozen=True)
class Seen:
    """A training row decoded from what the model was given, with its pictures as they came out of the image processor."""

    who: str
    row: SeenRow
    image: str


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
    decisions: tuple[Decision, ...]
    trends: tuple[Trend, ...]
    guard_trends: tuple[Trend, ...]
    stopped: str | None
    references: tuple[Comparison, ...]
    metrics: tuple[MetricRow, ...]
    stages: tuple[StageView, ...]
    pairs: tuple[Pair, ...]
    hindsight: bool
    labels_by: str
    """The setting self_asking.by."""
    rehearses: bool
    labels: tuple[Labels, ...]
    curves: tuple[Curve, ...]
    seen: tuple[Seen, ...]
    datasets: tuple[DatasetView, ...]
    artifacts: tuple[ArtifactLine, ...]
    revisions: tuple[tuple[str, str], ...]
    configuration: str
    prompts: tuple[tuple[str, str], ...]
    prompts_digest: str
    prompts_changed: bool
    stand_in: str | None
    """The simulator whose place an embedded player took, thor or virtualhome; None if none did."""
    embedded_model: bool

    @property
    def total_seconds(self) -> float:
        """Wall-clock time of this run."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def longest(self) -> float:
        """The longest bar among the stages."""
        return max((stage.bar_seconds for stage in self.stages), default=0.0) or 1.0
