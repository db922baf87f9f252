"""The action grammar is strict."""

from __future__ import annotations

import pytest

from selu.worlds.actions import GRAMMAR, Action, format_action, parse_action, read_action


@pytest.mark.parametrize("verb", GRAMMAR.verbs_with_object)
def test_every_interaction_is_read_back(verb: str) -> None:
    action = Action(verb, "DeskLamp")
    assert parse_action(format_action(action), "household") == action


@pytest.mark.parametrize("verb", GRAMMAR.verbs_alone)
def test_every_verb_alone_is_read_back(verb: str) -> None:
    assert parse_action(f" {verb}\n", "household") == Action(verb)


@pytest.mark.parametrize(
    "text",
    ["", "Open", "Open()", "Open(Fridge) now", "open(Fridge)", "Done(Mug)", "Fly(Mug)", "Open(Fridge", "Open (Fridge)"],
)
def test_what_is_no_action_is_none(text: str) -> None:
    assert parse_action(text, "household") is None


def test_a_text_that_was_an_action_is_read_without_its_grammar() -> None:
    assert read_action("Toggle(Lamp)") == Action("Toggle", "Lamp")
    assert read_action("toggle the lamp") is None


def test_primitives_have_no_approach() -> None:
    assert parse_action("Approach(Mug)", "household") is not None
    assert parse_action("Approach(Mug)", "primitives") is None
