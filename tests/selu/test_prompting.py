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
)


def test_texts_are_what_the_base_model_was_trained_on() -> None:
    assert act_prompt("open the fridge") == "Instruction: open the fridge\nAction?"
    assert verdict_prompt("open the fridge") == "Instruction: open the fridge Was it done?"
    assert ask_prompt("open the fridge") == "Instruction: open the fridge Which questions tell whether it was done?"
    assert question_prompt("What is open?") == "What is open?"


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
