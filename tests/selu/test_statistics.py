"""Intervals against published values and against what they promise: coverage and clustering."""

from __future__ import annotations

import math

import numpy as np
import pytest

from selu.statistics import (
    Confusion,
    bootstrap_balanced_accuracy,
    bootstrap_mean,
    cluster_bootstrap_difference,
    phi_coefficient,
    wilson,
    without_empty_interval,
)


def test_wilson_matches_the_published_example() -> None:
    # Newcombe (1998), table I, method 3: 81 of 263 -> 0.2553 to 0.3662; 0 of 20 -> 0 to 0.1611.
    rate = wilson(81, 263)
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.2553, 0.3662)
    nothing = wilson(0, 20)
    assert (nothing.low, round(nothing.high, 4)) == (0.0, 0.1611)


def test_wilson_of_nothing_is_not_a_number_and_nonsense_is_refused() -> None:
    assert math.isnan(wilson(0, 0).rate)
    with pytest.raises(ValueError, match=r"0\.\.3, got 4"):
        wilson(4, 3)


def test_interval_is_wider_when_scenes_differ_than_when_episodes_do() -> None:
    outcomes = [1.0] * 50 + [0.0] * 50
    by_scene = bootstrap_mean(outcomes, ["a"] * 50 + ["b"] * 50, seed=0)
    mixed = bootstrap_mean(outcomes, [f"scene{index % 20}" for index in range(100)], seed=0)
    assert by_scene.high - by_scene.low > 3 * (mixed.high - mixed.low)


def test_one_scene_says_nothing_about_how_scenes_differ() -> None:
    rate = bootstrap_mean([0.0, 1.0, 1.0], ["a", "a", "a"], seed=0)
    assert rate.rate == pytest.approx(2 / 3)
    assert math.isnan(rate.low)
    assert math.isnan(rate.high)


def test_difference_is_paired_and_repeats_for_a_seed() -> None:
    generator = np.random.default_rng(0)
    before = generator.random(200)
    scenes = [f"scene{index % 10}" for index in range(200)]
    gain = cluster_bootstrap_difference(before.tolist(), (before + 0.2).tolist(), scenes, seed=1)
    assert gain.rate == pytest.approx(0.2)
    # Paired: every item gains the same, so the spread of the items themselves must not show.
    assert gain.high - gain.low < 1e-9
    assert gain == cluster_bootstrap_difference(before.tolist(), (before + 0.2).tolist(), scenes, seed=1)
    with pytest.raises(ValueError, match="same length"):
        cluster_bootstrap_difference([0.0], [0.0, 1.0], ["a"], seed=0)


def test_always_yes_scores_half_however_common_yes_is() -> None:
    truth = [True] * 90 + [False] * 10
    always_yes = [1.0] * 90 + [0.0] * 10
    scenes = [f"scene{index % 7}" for index in range(100)]
    rate = bootstrap_balanced_accuracy(always_yes, truth, scenes, seed=0)
    assert (rate.rate, rate.low, rate.high) == (0.5, 0.5, 0.5)
    assert math.isnan(bootstrap_balanced_accuracy([1.0], [True], ["a"], seed=0).rate)


def test_confusion_figures() -> None:
    # Cohen's own kind of table: 20 both yes, 5 and 10 apart, 15 both no -> kappa 0.4.
    confusion = Confusion(true_positives=20, false_positives=5, false_negatives=10, true_negatives=15)
    assert confusion.cohen_kappa == pytest.approx(0.4)
    assert confusion.precision.rate == pytest.approx(0.8)
    assert confusion.recall.rate == pytest.approx(2 / 3)
    assert confusion.false_positive_rate.rate == pytest.approx(0.25)
    assert confusion.balanced_accuracy == pytest.approx((2 / 3 + 0.75) / 2)


def test_errors_of_the_same_judge_correlate_fully() -> None:
    errors = [True, False, False, True]
    assert phi_coefficient(errors, errors) == pytest.approx(1.0)
    assert math.isnan(phi_coefficient([True, True], [True, False]))


def test_an_interval_without_width_is_none() -> None:
    alike = without_empty_interval(bootstrap_mean([0.0] * 6, list("aabbcc"), seed=0))
    assert (alike.rate, alike.n) == (0.0, 6)
    assert math.isnan(alike.low)
    assert math.isnan(alike.high)
    differing = bootstrap_mean([0.0, 1.0] * 3, list("aabbcb"), seed=0)
    assert without_empty_interval(differing) == differing
