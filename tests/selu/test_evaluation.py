"""Figures against hand-counted cases; the columns are those of metrics.parquet."""

from __future__ import annotations

import json
import math

import pytest

from selu.evaluation import (
    Judged,
    MetricRow,
    Series,
    actor_metrics,
    critic_label_metrics,
    critic_metrics,
    difference_metric,
    error_correlation,
    goal_of_instruction,
    label_metrics,
    truth_of_instruction,
)
from selu.records import Judgement, OracleEpisode, OracleStep, Relabel, Verdict
from tests.scripted_model import make_episode

SERIES = Series(run="test", round=1, subject="critic", phase="after", probe="A", method="direct")


def _by_metric(rows: list[MetricRow]) -> dict[str, MetricRow]:
    return {row.metric: row for row in rows}


def test_columns_are_the_catalogs() -> None:
    assert list(MetricRow.model_fields) == [
        "run",
        "round",
        "subject",
        "phase",
        "probe",
        "method",
        "metric",
        "rate",
        "n",
        "low",
        "high",
    ]


def test_actor_figures_keep_every_scheduled_episode() -> None:
    first = make_episode("a", "open the fridge", ["Open(Fridge)", "Done"], [1, 2, 2])
    second = make_episode(
        "b", "open the fridge", ["dance", "MoveAhead", "MoveAhead", "MoveAhead"], [1] * 5, malformed=[0]
    )
    rows = _by_metric(
        actor_metrics(
            SERIES,
            [first[0], second[0]],
            [*first[1], *second[1]],
            [OracleEpisode(episode_id="a", success=True)],
            seed=0,
            samples=100,
        )
    )
    assert (rows["success_rate"].rate, rows["success_rate"].n) == (0.5, 2)
    assert rows["mean_steps"].rate == 3.0
    assert rows["malformed_actions"].rate == pytest.approx(1 / 6)
    assert rows["malformed_actions"].n == 6
    assert rows["own_done"].rate == 0.5


def test_an_episode_whose_goal_is_unknown_is_neither_success_nor_failure() -> None:
    made = [make_episode(name, "tidy up", ["Done"], [1, 2]) for name in "abc"]
    truth = [
        OracleEpisode(episode_id=name, success=known) for name, known in zip("abc", (True, None, None), strict=True)
    ]
    episodes = [episode for episode, _, _ in made]
    rows = _by_metric(actor_metrics(SERIES, episodes, made[0][1], truth, seed=0, samples=100))
    assert (rows["success_rate"].rate, rows["success_rate"].n) == (1.0, 1)
    assert rows["own_done"].n == 3
    said = Verdict(
        verdict_id="v", episode_id="b", frame_index=1, instruction="tidy up", verdict="yes", confidence=0.9,
        evidence="{}", accepted=True, reason="",
    )  # fmt: skip
    labels = _by_metric(label_metrics(SERIES, episodes, [said], [], truth, []))
    assert labels["false_rate"].n == 0
    assert labels["coverage"].n == 3


def _judgements(counts: dict[tuple[Judgement, bool], int]) -> list[Judged]:
    return [
        Judged(verdict, truth, f"scene{number % 7}")
        for (verdict, truth), count in counts.items()
        for number in range(count)
    ]


def test_critic_figures() -> None:
    judged = _judgements({("yes", True): 20, ("yes", False): 5, ("no", True): 10, ("no", False): 15})
    rows = _by_metric(critic_metrics(SERIES, judged, seed=0, samples=200))
    assert rows["balanced_accuracy"].rate == pytest.approx((20 / 30 + 15 / 20) / 2)
    assert rows["balanced_accuracy"].low < rows["balanced_accuracy"].rate < rows["balanced_accuracy"].high
    assert rows["precision"].rate == 0.8
    assert rows["false_positive_rate"].rate == 0.25
    assert rows["cohen_kappa"].rate == pytest.approx(0.4)
    assert (rows["base_rate"].rate, rows["base_rate"].n) == (0.6, 50)


def test_unsure_earns_no_more_than_a_coin() -> None:
    unsure = _by_metric(
        critic_metrics(SERIES, _judgements({("unsure", True): 9, ("unsure", False): 3}), seed=0, samples=50)
    )
    assert unsure["balanced_accuracy"].rate == 0.5
    assert unsure["unsure"].rate == 1.0
    assert math.isnan(unsure["precision"].rate)


def test_gain_is_paired_by_item() -> None:
    row = difference_metric(
        SERIES, "success_rate", [0, 0, 1, 1], [1, 0, 1, 1], ["a", "b", "c", "d"], seed=0, samples=500
    )
    assert (row.metric, row.rate, row.n) == ("success_rate_gain", 0.25, 4)
    assert row.low <= 0.25 <= row.high


def test_error_correlation_of_one_judge_with_itself_is_one() -> None:
    judged = _judgements({("yes", True): 3, ("yes", False): 2, ("unsure", True): 1})
    row = error_correlation(SERIES, judged, judged)
    assert row.rate == pytest.approx(1.0)
    assert row.n == 5


FACTS = json.dumps(
    {"held": ["Mug"], "open": ["Drawer"], "closed": ["Fridge", "Drawer"], "inside": [["Apple", "Fridge"]], "on": []}
)


@pytest.mark.parametrize(
    ("instruction", "truth"),
    [
        ("pick up the mug", True),
        ("open the drawer", True),
        ("open the fridge", False),
        ("put the apple in the fridge", True),
        ("put the mug in the fridge", False),
        ("open the drawer and then pick up the mug", True),
        ("open the fridge and then pick up the mug", False),
        ("turn on the desk lamp", False),
        ("tidy the kitchen", None),
        ("open the quux", None),
    ],
)
def test_truth_of_an_instruction_in_a_frame(instruction: str, truth: bool | None) -> None:
    assert truth_of_instruction(instruction, FACTS) is truth
    assert (goal_of_instruction(instruction) is None) == (truth is None)


def test_label_quality_counts_what_was_accepted() -> None:
    episodes = [make_episode(name, "open the fridge", ["MoveAhead", "Done"], [1, 2, 2])[0] for name in "abcde"]

    def verdict(name: str, said: str, *, accepted: bool = True, instruction: str = "open the fridge") -> Verdict:
        return Verdict.model_validate(
            {
                "verdict_id": f"v{name}",
                "episode_id": name,
                "frame_index": 2,
                "instruction": instruction,
                "verdict": said,
                "confidence": 0.9,
                "evidence": "{}",
                "accepted": accepted,
                "reason": "",
            }
        )

    def relabel(name: str, instruction: str, *, accepted: bool = True) -> Relabel:
        return Relabel(
            relabel_id=f"r{name}{instruction}",
            episode_id=name,
            frame_index=1,
            original_instruction="open the fridge",
            instruction=instruction,
            confidence=0.9,
            evidence="{}",
            accepted=accepted,
            reason="",
        )

    labelled = (
        SERIES,
        episodes,
        [
            verdict("a", "yes"),
            verdict("b", "yes"),
            verdict("c", "no"),
            verdict("d", "unsure", accepted=False),
            verdict("e", "yes", instruction="pick up the mug"),  # not its own instruction: no label of the episode
        ],
        [
            relabel("c", "pick up the mug"),
            relabel("d", "turn on the desk lamp"),
            relabel("d", "tidy the kitchen"),
            relabel("d", "open the drawer", accepted=False),
        ],
        [OracleEpisode(episode_id=name, success=name in "ac") for name in "abcde"],
        [
            OracleStep(
                episode_id=name, frame_index=frame, action_success=True, error_message="", goal_holds=False, facts=FACTS
            )
            for name in "abcde"
            for frame in (1, 2)
        ],
    )
    rows = _by_metric(label_metrics(*labelled))
    assert (rows["false_rate_verdicts"].rate, rows["false_rate_verdicts"].n) == (0.5, 2)
    # The lamp is off, and of tidying nothing is known: both count as false.
    assert rows["false_rate_relabels"].rate == pytest.approx(2 / 3)
    assert rows["false_rate_relabels"].n == 3
    assert rows["false_rate"].rate == pytest.approx(3 / 5)
    assert rows["false_rate"].n == 5
    assert rows["false_rate_no"].rate == 1.0
    assert (rows["coverage"].rate, rows["coverage"].n) == (0.8, 5)
    assert rows["labelled"].rate == 0.8
    # The critic learns from the mug in e's picture too, which is right, and from the false `no` about c.
    (everything,) = critic_label_metrics(*labelled)
    assert (everything.metric, everything.n) == ("false_rate_critic_labels", 7)
    assert everything.rate == pytest.approx(4 / 7)
