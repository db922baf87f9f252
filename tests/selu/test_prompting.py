"""Prompts are exact texts: filled strictly, versioned by content."""

from __future__ import annotations

import pytest

from selu.errors import ConfigError
from selu.prompting import (
    achievements,
    act_prompt,
    ask_prompt,
    load_prompt,
    paraphrases,
    prompts_digest,
    question_prompt,
    verdict_prompt,
    without_full_stop,
)
from selu.questions import parse_questions
from selu.worlds.actions import parse_action


def test_texts_are_what_the_base_model_was_trained_on() -> None:
    assert act_prompt("open the fridge") == "Instruction: open the fridge\nAction?"
    assert verdict_prompt("open the fridge") == "Instruction: open the fridge Was it done?"
    assert ask_prompt("open the fridge") == "Instruction: open the fridge Which questions tell whether it was done?"
    assert question_prompt("What is open?") == "What is open?"


def test_a_model_from_elsewhere_is_told_the_actions_and_the_form_of_an_answer() -> None:
    text = act_prompt("open the fridge", ["MoveAhead"], "full")
    assert "open the fridge" in text
    assert "Before: MoveAhead" in text
    assert "PickUp(Type)" in text
    assert "Approach(Type)" in text
    assert parse_action(text.split()[-1], "household") is not None
    assert "Approach" not in act_prompt("open the fridge", (), "full", "primitives")
    assert "Answer yes or no." in verdict_prompt("open the fridge", "full")
    assert question_prompt("Is the fridge open?", "full").endswith("Answer yes or no.")
    assert "mug, desk lamp" in question_prompt("What is open?", "full")
    # The example of the prompt is itself readable.
    assert len(parse_questions(ask_prompt("open the fridge", "full").splitlines()[-2], 6, "full")) == 2


def test_of_a_full_style_answer_only_white_space_and_a_full_stop_are_forgiven() -> None:
    assert without_full_stop(" yes.\n", "full") == "yes"
    assert without_full_stop("yes.", "brief") == "yes."
    assert without_full_stop("yes, it is.", "full") == "yes, it is."
    assert parse_questions("Is the fridge open? yes.", 6, "full") == [("Is the fridge open?", "yes")]
    with pytest.raises(ValueError, match="cannot be answered"):
        parse_questions("Is the fridge open? yes.", 6)


def test_history_shows_the_last_actions_in_order() -> None:
    text = act_prompt("open the fridge", ["MoveAhead", "Approach(Fridge)"])
    assert text.index("MoveAhead") < text.index("Approach(Fridge)") < text.index("Action?")


def test_fields_must_be_exactly_the_prompts_own() -> None:
    with pytest.raises(ConfigError, match=r"wants the fields \['instruction'\], got \['task'\]"):
        load_prompt("verdict").format(task="open the fridge")


def test_an_unknown_prompt_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no prompt verdicts\.txt.*verdict\.txt"):
        load_prompt("verdicts")


def test_paraphrases_fill_what_they_match() -> None:
    matched = [
        paraphrase.other.format(**fields)
        for paraphrase in paraphrases()
        if (fields := paraphrase.match("Is the desk lamp on?")) is not None
    ]
    assert matched == ["Is the desk lamp off?", "What is switched on?"]


def test_every_achievement_can_be_told_in_words() -> None:
    fields = {"a": "mug", "b": "fridge", "preposition": "in"}
    for achievement in achievements().values():
        assert achievement.verification.format(**fields).endswith("?")
        assert "{" not in achievement.instruction.format(**fields) + achievement.expected.format(**fields)


def test_digest_is_a_hash_of_all_texts() -> None:
    assert len(prompts_digest()) == 64
    assert load_prompt("act").digest != load_prompt("ask").digest
