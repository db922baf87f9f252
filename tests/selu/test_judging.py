"""The direct verdict, and that a blind really takes away what should answer."""

from __future__ import annotations

import numpy as np

from selu.judging import Item, blinded, direct_verdicts, majority_verdicts, refined_verdict
from selu.prompting import verdict_prompt
from tests.scripted_model import ScriptedModel, picture

ITEMS: list[Item] = [
    ((picture(level),), f"open the {name}") for level, name in ((10, "box"), (20, "fridge"), (30, "drawer"))
]


def test_direct_verdicts_give_the_likelier_answer_and_its_probability() -> None:
    model = ScriptedModel(
        {
            (10, verdict_prompt("open the box")): ("yes", 0.8),
            (20, verdict_prompt("open the fridge")): ("no", 0.6),
            (30, verdict_prompt("open the drawer")): ("no", 0.9),
        }
    )
    judged = [(verdict, round(probability, 6)) for verdict, probability in direct_verdicts(ITEMS, model)]
    assert judged == [("yes", 0.8), ("no", 0.6), ("no", 0.9)]
    assert len(model.calls) == 1
    assert direct_verdicts([], model) == []


def test_a_majority_of_sampled_verdicts_decides_and_its_share_is_the_confidence() -> None:
    doubtful = ScriptedModel({(None, verdict_prompt(text)): ("yes", 0.6) for _, text in ITEMS})
    items = ITEMS[:1] * 400
    judged = majority_verdicts(items, range(400), 5, doubtful)
    assert {share for _, share in judged} == {0.6, 0.8, 1.0}
    # P(at least 3 of 5) is .683 where each is yes with .6.
    assert 0.6 < sum(side == "yes" for side, _ in judged) / 400 < 0.77
    assert majority_verdicts(items, range(400), 5, doubtful) == judged
    sure = ScriptedModel({(None, verdict_prompt(text)): ("no", 0.999999) for _, text in ITEMS})
    assert majority_verdicts(ITEMS, [1, 2, 3], 5, sure) == [("no", 1.0)] * 3
    # Two of four: a label that says "done" needs a majority.
    assert ("no", 0.5) in majority_verdicts(items, range(400), 4, doubtful)
    assert ("yes", 0.5) not in majority_verdicts(items, range(400), 4, doubtful)


def test_feedback_revises_a_verdict_that_it_contradicts_with_more_confidence() -> None:
    assert refined_verdict(("yes", 0.6), "no", 0.9) == ("no", 0.9)
    assert refined_verdict(("yes", 0.95), "no", 0.9) == ("yes", 0.95)
    assert refined_verdict(("yes", 0.6), "yes", 0.9) == ("yes", 0.6)
    assert refined_verdict(("yes", 0.6), "unsure", 0.9) == ("yes", 0.6)


def test_blinds_keep_instructions_and_take_the_pictures() -> None:
    for blind in ("blank", "no_image", "shuffled"):
        assert [text for _, text in blinded(ITEMS, blind, seed=0)] == [text for _, text in ITEMS]
    assert all(np.unique(pictures[0]).tolist() == [128] for pictures, _ in blinded(ITEMS, "blank", seed=0))
    assert all(pictures == () for pictures, _ in blinded(ITEMS, "no_image", seed=0))


def test_shuffling_leaves_no_item_its_own_frames() -> None:
    for seed in range(20):
        shuffled = blinded(ITEMS, "shuffled", seed=seed)
        levels = [int(pictures[0][0, 0, 0]) for pictures, _ in shuffled]
        assert sorted(levels) == [10, 20, 30]
        assert all(level != own for level, own in zip(levels, (10, 20, 30), strict=True))
