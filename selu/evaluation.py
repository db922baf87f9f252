"""Figures from records and the oracle. The one place of the pipeline where ground truth is read.

Every figure is a :class:`MetricRow`: a rate with n and a 95 % interval (Wilson for one proportion, a bootstrap that
resamples scenes for the rest). All scheduled episodes are in the denominator.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from selu.records import Episode, Judgement, OracleEpisode, OracleStep, Record, Relabel, Step, Verdict
from selu.statistics import (
    Confusion,
    Rate,
    bootstrap_balanced_accuracy,
    bootstrap_mean,
    cluster_bootstrap_difference,
    phi_coefficient,
    wilson,
)
from selu.worlds.base import holds
from selu.worlds.tasks import goal_of_instruction

__all__ = [
    "ItemOutcome",
    "Judged",
    "MetricRow",
    "Series",
    "actor_metrics",
    "balanced_difference",
    "critic_label_metrics",
    "critic_metrics",
    "difference_metric",
    "error_correlation",
    "goal_of_instruction",
    "label_error_correlation",
    "label_metrics",
    "rate_metric",
    "truth_of_instruction",
]

Subject = Literal["actor", "critic", "labels", "general"]
Phase = Literal["before", "after", "rejected"]
"""`rejected`: of an adapter that a guard refused; `after` is what was taken into use in its place."""
Probe = Literal["A", "B", "A+B", "learning"]
"""A lies in the learning scenes, B in the transfer scenes, A+B in both; `learning`: the episodes learned from."""

TruthOf = Callable[[str, str], bool | None]
"""(instruction, facts of a frame as in OracleStep.facts) -> whether the instruction is fulfilled, None if unknown."""


class _Placed(Record):
    """Where a figure or an outcome belongs; the fields of :class:`Series`."""

    run: str = Field(description="speaking name of the run")
    round: int
    subject: Subject
    phase: Phase
    probe: Probe
    method: str = Field(description="how it was obtained, e.g. selu, direct, self_asking, blind:blank, random, planner")


class MetricRow(_Placed):
    """One figure of a run; a row of metrics.parquet."""

    metric: str
    rate: float
    n: int
    low: float
    high: float


class ItemOutcome(_Placed):
    """What one item of a probe came to; a row of outcomes.parquet. Figures over several runs are made of these."""

    item: str = Field(description="the same for the same item in every run: its task, trajectory or question")
    scene: str
    kind: str = Field(description="kind of task, e.g. open or two_step; of a general question, its kind")
    truth: bool | None = Field(description="critic: whether the trajectory succeeded; None for the others")
    value: float = Field(description="1 right or done, 0 not; 0.5 an unsure verdict")


@dataclass(frozen=True)
class Series:
    """Where a figure belongs: all columns of a MetricRow but the figure."""

    run: str
    round: int
    subject: Subject
    phase: Phase
    probe: Probe
    method: str

    def row(self, metric: str, rate: Rate) -> MetricRow:
        """A figure in this series."""
        return MetricRow(
            **vars(self),
            metric=metric,
            rate=rate.rate,
            n=rate.n,
            low=rate.low,
            high=rate.high,
        )

    def outcome(self, item: str, scene: str, kind: str, value: float, truth: bool | None = None) -> ItemOutcome:
        """What an item came to in this series."""
        return ItemOutcome(
            **vars(self),
            item=item,
            scene=scene,
            kind=kind,
            truth=truth,
            value=value,
        )


@dataclass(frozen=True)
class Judged:
    """One judgement beside the truth."""

    verdict: Judgement
    truth: bool
    scene: str

    @property
    def credit(self) -> float:
        """1 right, 0 wrong, 0.5 unsure (a forced guess)."""
        return 0.5 if self.verdict == "unsure" else float((self.verdict == "yes") == self.truth)


def _point(value: float, n: int) -> Rate:
    """A figure without an interval."""
    return Rate(rate=value, n=n, low=float("nan"), high=float("nan"))


def rate_metric(series: Series, metric: str, outcomes: Sequence[bool]) -> MetricRow:
    """Share of true outcomes with Wilson's interval, e.g. of right answers in the general probe."""
    return series.row(metric, wilson(sum(outcomes), len(outcomes)))


def actor_metrics(
    series: Series,
    episodes: Sequence[Episode],
    steps: Sequence[Step],
    oracle: Sequence[OracleEpisode],
    *,
    seed: int,
    samples: int,
) -> list[MetricRow]:
    """success_rate (Wilson), mean_steps (clustered by scene), malformed_actions (share of steps), own_done.

    An episode without an oracle row counts as failed: it was scheduled. One whose goal is unknown has no success.
    """
    success = {row.episode_id: row.success for row in oracle}
    known = [done for row in episodes if (done := success.get(row.episode_id, False)) is not None]
    malformed = sum(not step.well_formed for step in steps)
    lengths = [float(episode.length) for episode in episodes]
    return [
        rate_metric(series, "success_rate", known),
        series.row("mean_steps", bootstrap_mean(lengths, [episode.scene for episode in episodes], seed, samples)),
        series.row("malformed_actions", wilson(malformed, len(steps))),
        rate_metric(series, "own_done", [episode.finish_reason == "done" for episode in episodes]),
    ]


def critic_metrics(series: Series, judged: Sequence[Judged], *, seed: int, samples: int) -> list[MetricRow]:
    """balanced_accuracy (clustered by scene; `unsure` earns half), precision, recall and false_positive_rate and
    cohen_kappa over sure judgements, base_rate, unsure."""
    sure = [item for item in judged if item.verdict != "unsure"]
    counts = {
        (said, truth): sum(item.verdict == said and item.truth == truth for item in sure)
        for said in ("yes", "no")
        for truth in (True, False)
    }
    confusion = Confusion(
        true_positives=counts["yes", True],
        false_positives=counts["yes", False],
        false_negatives=counts["no", True],
        true_negatives=counts["no", False],
    )
    balanced = bootstrap_balanced_accuracy(
        [item.credit for item in judged],
        [item.truth for item in judged],
        [item.scene for item in judged],
        seed,
        samples,
    )
    return [
        series.row("balanced_accuracy", balanced),
        series.row("precision", confusion.precision),
        series.row("recall", confusion.recall),
        series.row("false_positive_rate", confusion.false_positive_rate),
        series.row("cohen_kappa", _point(confusion.cohen_kappa, confusion.n)),
        rate_metric(series, "base_rate", [item.truth for item in judged]),
        rate_metric(series, "unsure", [item.verdict == "unsure" for item in judged]),
    ]


def difference_metric(
    series: Series,
    metric: str,
    before: Sequence[float],
    after: Sequence[float],
    scenes: Sequence[str],
    *,
    seed: int,
    samples: int,
) -> MetricRow:
    """Mean gain over the same items, paired, with an interval clustered by scene; e.g. success before and after."""
    return series.row(f"{metric}_gain", cluster_bootstrap_difference(before, after, scenes, seed, samples))


def error_correlation(series: Series, first: Sequence[Judged], second: Sequence[Judged]) -> MetricRow:
    """Phi coefficient of the errors of two judges on the same items, over those that both are sure about."""
    both = [
        (one, two)
        for one, two in zip(first, second, strict=True)
        if one.verdict != "unsure" and two.verdict != "unsure"
    ]
    value = phi_coefficient([one.credit == 0 for one, _ in both], [two.credit == 0 for _, two in both])
    return series.row("error_correlation", _point(value, len(both)))


def balanced_difference(
    series: Series, before: Sequence[Judged], after: Sequence[Judged], *, seed: int, samples: int
) -> MetricRow:
    """:func:`difference_metric` of the balanced accuracy over items of which not half are true.

    Each item weighs so much that true and false ones count alike; with one of them alone the gain is undefined.
    """
    true = sum(item.truth for item in after)
    if true in (0, len(after)):
        return series.row("balanced_accuracy_gain", _point(float("nan"), len(after)))
    weights = [len(after) / (2 * (true if item.truth else len(after) - true)) for item in after]
    return difference_metric(
        series,
        "balanced_accuracy",
        [weight * item.credit for weight, item in zip(weights, before, strict=True)],
        [weight * item.credit for weight, item in zip(weights, after, strict=True)],
        [item.scene for item in after],
        seed=seed,
        samples=samples,
    )


def label_error_correlation(
    series: Series, episodes: Sequence[Episode], verdicts: Sequence[Verdict], oracle: Sequence[OracleEpisode]
) -> list[MetricRow]:
    """error_correlation: phi of the errors of self-asking and of the direct verdict that had to agree with it.

    Over the own instructions on which self-asking came to a side. (Among labels that both were accepted for, they err
    together by definition; what matters is how much of the one's errors the other would catch.) Nothing where no direct
    verdict was asked for.
    """
    success = {row.episode_id: row.success for row in oracle}
    own = {(row.episode_id, row.instruction, row.length): row for row in episodes}
    asked: list[Judged] = []
    told: list[Judged] = []
    for row in verdicts:
        episode = own.get((row.episode_id, row.instruction, row.frame_index))
        # A direct verdict beside self-asking stands in a group of its own, see selu.verdicts.
        said = [entry["answer"] for entry in json.loads(row.evidence)["questions"] if entry["group"] == -1]
        if episode is None or len(said) != 1 or said[0] not in ("yes", "no"):
            continue
        truth = success[row.episode_id]
        if row.verdict != "unsure" and truth is not None:
            asked.append(Judged(row.verdict, truth, episode.scene))
            told.append(Judged(said[0], truth, episode.scene))
    return [error_correlation(series, told, asked)] if asked else []


def truth_of_instruction(instruction: str, facts: str) -> bool | None:
    """Default :data:`TruthOf`: every condition of the instruction's goal holds in the frame."""
    goal = goal_of_instruction(instruction)
    if goal is None:
        return None
    known = json.loads(facts)
    return holds(goal, known)


def label_metrics(
    series: Series,
    episodes: Sequence[Episode],
    verdicts: Sequence[Verdict],
    relabels: Sequence[Relabel],
    oracle_episodes: Sequence[OracleEpisode],
    oracle_steps: Sequence[OracleStep],
    *,
    truth_of: TruthOf = truth_of_instruction,
) -> list[MetricRow]:
    """Quality of what the critic labelled by itself.

    A *done-label* is an accepted `yes` under the original instruction at the last frame, or an accepted relabel (a
    partial one says that something was begun, and is none).
    false_rate: share of done-labels that are false; false_rate_verdicts, false_rate_relabels: the same by origin;
    false_rate_no: share of accepted `no` labels that are false; coverage: share of episodes with a done-label;
    labelled: share of episodes with any accepted label. A verdict on an episode whose goal is unknown is in no false
    rate; a relabel whose truth `truth_of` does not know counts as false.
    """
    lengths = {episode.episode_id: episode.length for episode in episodes}
    instructions = {episode.episode_id: episode.instruction for episode in episodes}
    success = {row.episode_id: row.success for row in oracle_episodes}
    facts = {(row.episode_id, row.frame_index): row.facts for row in oracle_steps}
    own = [
        verdict
        for verdict in verdicts
        if verdict.accepted
        and instructions.get(verdict.episode_id) == verdict.instruction
        and lengths[verdict.episode_id] == verdict.frame_index
    ]
    taken = [row for row in relabels if row.accepted and not row.partial and row.episode_id in lengths]
    told = [(row.verdict, true) for row in own if (true := success[row.episode_id]) is not None]
    yes_false = [not true for said, true in told if said == "yes"]
    no_false = [true for said, true in told if said == "no"]
    relabel_false = [truth_of(row.instruction, facts[row.episode_id, row.frame_index]) is not True for row in taken]
    done = {row.episode_id for row in own if row.verdict == "yes"} | {row.episode_id for row in taken}
    labelled = done | {row.episode_id for row in own}
    return [
        rate_metric(series, "false_rate", yes_false + relabel_false),
        rate_metric(series, "false_rate_verdicts", yes_false),
        rate_metric(series, "false_rate_relabels", relabel_false),
        rate_metric(series, "false_rate_no", no_false),
        rate_metric(series, "coverage", [episode in done for episode in lengths]),
        rate_metric(series, "labelled", [episode in labelled for episode in lengths]),
    ]


def critic_label_metrics(
    series: Series,
    episodes: Sequence[Episode],
    verdicts: Sequence[Verdict],
    relabels: Sequence[Relabel],
    oracle_episodes: Sequence[OracleEpisode],
    oracle_steps: Sequence[OracleStep],
    *,
    truth_of: TruthOf = truth_of_instruction,
) -> list[MetricRow]:
    """false_rate_critic_labels: share of false ones among all on played episodes that the critic's dataset is drawn from.

    These are accepted verdicts of either kind, under any instruction and at any frame (contrasts too), and accepted
    relabels. A verdict whose truth is unknown is left out; a relabel whose truth `truth_of` does not know counts as false.
    """
    lengths = {episode.episode_id: episode.length for episode in episodes}
    instructions = {episode.episode_id: episode.instruction for episode in episodes}
    success = {row.episode_id: row.success for row in oracle_episodes}
    facts = {(row.episode_id, row.frame_index): row.facts for row in oracle_steps}

    def truth(label: Verdict | Relabel) -> bool | None:
        name = label.episode_id
        if (label.instruction, label.frame_index) == (instructions[name], lengths[name]):
            return success[name]
        return truth_of(label.instruction, facts[name, label.frame_index])

    told = [(row.verdict == "yes", truth(row)) for row in verdicts if row.accepted]
    false = [said is not known for said, known in told if known is not None]
    false += [truth(row) is not True for row in relabels if row.accepted and not row.partial]
    return [rate_metric(series, "false_rate_critic_labels", false)]
