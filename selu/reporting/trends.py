"""Figures over the rounds of a run, for the report's plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from selu.evaluation import MetricRow
from selu.reporting.views import Trend, TrendLine, TrendPoint
from selu.rounds import Round, find_metric

__all__ = ["guard_trends", "trends"]

Run = Sequence[tuple[Round, Sequence[MetricRow]]]
"""Rounds in order, each with its figures."""

Tone = Literal["first", "second", "third"]


def trends(run: Run) -> tuple[Trend, ...]:
    """Critic, actor and labels over rounds; nothing for a run of one round."""
    if len(run) < 2:
        return ()
    return (
        Trend(
            "Critic",
            "balanced accuracy of its verdicts in percent; guessing gives 50",
            (
                _learned(run, "directly, A", "first", "critic", "A", "direct", "balanced_accuracy"),
                _learned(run, "directly, B", "second", "critic", "B", "direct", "balanced_accuracy"),
                _learned(run, "by self-asking, A", "third", "critic", "A", "self_asking", "balanced_accuracy"),
            ),
        ),
        Trend(
            "Actor",
            "tasks done in percent",
            (
                _learned(run, "A", "first", "actor", "A", "selu", "success_rate"),
                _learned(run, "B", "second", "actor", "B", "selu", "success_rate"),
            ),
        ),
        Trend(
            "Labels that taught the actor",
            "percent; coverage: episodes with a label that says done; false: of these labels",
            (
                _labelled(run, "coverage", "first", "coverage"),
                _labelled(run, "false", "second", "false_rate"),
            ),
        ),
    )


def _point(number: int, row: MetricRow | None) -> tuple[TrendPoint, ...]:
    return () if row is None else (TrendPoint(number, row.rate, row.low, row.high),)


def _learned(run: Run, name: str, tone: Tone, subject: str, probe: str, method: str, metric: str) -> TrendLine:
    """From the model as it was before the first of these rounds to that after the last."""

    def row(rows: Sequence[MetricRow], phase: str) -> MetricRow | None:
        return find_metric(rows, subject=subject, phase=phase, probe=probe, method=method, metric=metric)

    first, rows = run[0]
    points = _point(first.round - 1, row(rows, "before"))
    return TrendLine(name, tone, sum((_point(item.round, row(rows, "after")) for item, rows in run), points))


def _labelled(run: Run, name: str, tone: Tone, metric: str) -> TrendLine:
    found = (
        _point(
            item.round,
            find_metric(rows, subject="labels", phase="after", probe="learning", method="selu", metric=metric),
        )
        for item, rows in run
    )
    return TrendLine(name, tone, sum(found, ()))


def guard_trends(rounds: Sequence[Round]) -> tuple[Trend, ...]:
    """Every signal of the guards over rounds, with its limit; nothing for a run of one round."""
    if len(rounds) < 2:
        return ()
    found: dict[tuple[str, str], tuple[str, bool, list[TrendPoint], list[TrendPoint]]] = {}
    for item in rounds:
        for report in item.guards:
            for signal in report.signals:
                in_bits = signal.meaning.endswith("in bits")
                _, _, values, limits = found.setdefault((report.who, signal.name), (signal.meaning, in_bits, [], []))
                if signal.after is not None:
                    values.append(TrendPoint(item.round, signal.after, refused=not signal.passed))
                if signal.limit is not None:
                    limits.append(TrendPoint(item.round, signal.limit))
    return tuple(
        Trend(
            f"{who.capitalize()}: {name.replace('_', ' ')}",
            meaning if in_bits else f"{meaning}, in percent",
            (TrendLine("candidate", "first", tuple(values)), TrendLine("limit", "limit", tuple(limits))),
            share=not in_bits,
        )
        for (who, name), (meaning, in_bits, values, limits) in found.items()
        if values
    )
