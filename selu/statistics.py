"""Rates, intervals and agreement, as the figures of a report need them.

One rate gets Wilson's score interval; a difference, a mean or a balanced accuracy gets a percentile bootstrap that
resamples whole clusters (scenes), because episodes of one scene are not independent (Field & Welsh 2007).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Confusion",
    "Rate",
    "bootstrap_balanced_accuracy",
    "bootstrap_mean",
    "cluster_bootstrap_difference",
    "phi_coefficient",
    "wilson",
    "without_empty_interval",
]

_Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Rate(BaseModel):
    """A figure with its 95 % interval; where there is none (`n` = 0, a single cluster) its bounds are NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: float
    n: int = Field(description="observations behind the figure")
    low: float
    high: float


Figure = TypeVar("Figure", bound="_Bounded")


class _Bounded(Protocol):
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    def model_copy(self, *, update: dict[str, Any]) -> Self: ...


def without_empty_interval(figure: Figure) -> Figure:
    """A figure with `low` and `high`, which become NaN where the interval has no width.

    A bootstrap of observations that are all alike resamples but one value. That says nothing about those it did not meet.
    """
    if figure.low == figure.high:
        return figure.model_copy(update={"low": math.nan, "high": math.nan})
    return figure


def _nothing() -> Rate:
    return Rate(rate=float("nan"), n=0, low=float("nan"), high=float("nan"))


def wilson(successes: int, n: int) -> Rate:
    """Wilson's score interval (95 %) of `successes` out of `n`.

    Raises ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be in 0..{n}, got {successes}")
    if n == 0:
        return _nothing()
    rate, square = successes / n, _Z_95**2
    centre = (rate + square / (2 * n)) / (1 + square / n)
    half = _Z_95 / (1 + square / n) * float(np.sqrt(rate * (1 - rate) / n + square / (4 * n * n)))
    # At the ends the bound is exactly 0 or 1; floating point would leave it a hair inside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Rate(rate=rate, n=n, low=low, high=high)


def _totals(columns: NDArray[np.float64], clusters: Sequence[str]) -> NDArray[np.float64]:
    """Sums of `columns` (n, k) by cluster -> (clusters, k), clusters in sorted order."""
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    totals = np.zeros((len(names), columns.shape[1]))
    np.add.at(totals, index, columns)
    return totals


def _bootstrap(
    columns: NDArray[np.float64], clusters: Sequence[str], statistic: Statistic, seed: int, samples: int
) -> tuple[float, float]:
    """2.5 % and 97.5 % percentiles of `statistic` over resampled clusters.

    `columns` is (n, k); `statistic` maps sums (samples, k) to (samples,), NaN where a resample leaves it undefined. One
    cluster says nothing about how clusters differ: NaN.
    """
    totals = _totals(columns, clusters)
    if len(totals) < 2:
        return float("nan"), float("nan")
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    counts = generator.multinomial(len(totals), np.full(len(totals), 1 / len(totals)), size=samples)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(counts @ totals)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _same_length(*columns: Sequence[object]) -> int:
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise ValueError(f"all columns must have the same length, got {lengths}")
    return lengths[0]


def bootstrap_mean(values: Sequence[float], clusters: Sequence[str], seed: int, samples: int = 2000) -> Rate:
    """Mean of `values` with a 95 % interval clustered by `clusters`."""
    n = _same_length(values, clusters)
    if n == 0:
        return _nothing()
    columns = np.stack([np.asarray(values, dtype=np.float64), np.ones(n)], axis=1)
    low, high = _bootstrap(columns, clusters, lambda sums: sums[:, 0] / sums[:, 1], seed, samples)
    return Rate(rate=float(columns[:, 0].mean()), n=n, low=low, high=high)


def cluster_bootstrap_difference(
    before: Sequence[float], after: Sequence[float], clusters: Sequence[str], seed: int, samples: int = 2000
) -> Rate:
    """Mean of `after - before`, paired item by item, with a 95 % interval that resamples whole clusters.

    `before` and `after` are outcomes (0/1 or a score) of the same n items; `clusters` names each item's scene.
    """
    _same_length(before, after, clusters)
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return bootstrap_mean([float(value) for value in difference], clusters, seed, samples)


@dataclass(frozen=True)
class Confusion:
    """Counts of a binary judge against the truth. A forced guess counts as half a right and half a wrong answer."""

    true_positives: float
    false_positives: float
    false_negatives: float
    true_negatives: float

    @property
    def n(self) -> int:
        """Judged items."""
        return round(self.true_positives + self.false_positives + self.false_negatives + self.true_negatives)

    @property
    def positives(self) -> int:
        """Items that are true."""
        return round(self.true_positives + self.false_negatives)

    @property
    def predicted_positives(self) -> int:
        """Items that the judge called true."""
        return round(self.true_positives + self.false_positives)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the recalls of both classes; NaN when one class is absent."""
        negatives = self.n - self.positives
        if not self.positives or not negatives:
            return float("nan")
        return (self.true_positives / self.positives + self.true_negatives / negatives) / 2

    @property
    def cohen_kappa(self) -> float:
        """Agreement beyond chance (Cohen 1960); NaN when chance alone explains everything."""
        if not self.n:
            return float("nan")
        observed = (self.true_positives + self.true_negatives) / self.n
        yes = (self.true_positives + self.false_positives) / self.n * (self.positives / self.n)
        no = (self.false_negatives + self.true_negatives) / self.n * (1 - self.positives / self.n)
        return float("nan") if yes + no >= 1 else (observed - yes - no) / (1 - yes - no)

    @property
    def precision(self) -> Rate:
        """Share of the called-true that are true (counts are rounded down to whole items)."""
        return wilson(int(self.true_positives), int(self.true_positives) + int(self.false_positives))

    @property
    def recall(self) -> Rate:
        """Share of the true that were called true."""
        return wilson(int(self.true_positives), self.positives)

    @property
    def false_positive_rate(self) -> Rate:
        """Share of the false that were called true."""
        return wilson(int(self.false_positives), self.n - self.positives)


def bootstrap_balanced_accuracy(
    credits: Sequence[float], truth: Sequence[bool], clusters: Sequence[str], seed: int, samples: int = 2000
) -> Rate:
    """Balanced accuracy with a 95 % interval clustered by `clusters`.

    `credits[i]` is what item i's judgement earned: 1 right, 0 wrong, 0.5 a forced guess.
    """
    n = _same_length(credits, truth, clusters)
    positive = np.asarray(truth, dtype=np.float64)
    if n == 0 or positive.min() == positive.max():
        return Rate(rate=float("nan"), n=n, low=float("nan"), high=float("nan"))
    earned = np.asarray(credits, dtype=np.float64)
    columns = np.stack([earned * positive, positive, earned * (1 - positive), 1 - positive], axis=1)

    def statistic(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return (sums[:, 0] / sums[:, 1] + sums[:, 2] / sums[:, 3]) / 2

    low, high = _bootstrap(columns, clusters, statistic, seed, samples)
    return Rate(rate=float(statistic(columns.sum(axis=0, keepdims=True))[0]), n=n, low=low, high=high)


def phi_coefficient(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Correlation of two binary columns, e.g. the errors of two judges; NaN when one of them never varies."""
    _same_length(first, second)
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not len(one) or one.std() == 0 or two.std() == 0:
        return float("nan")
    return float(np.corrcoef(one, two)[0, 1])
