"""The actor's action grammar: navigation primitives and ``Verb(ObjectType)`` interactions, as text.

Parsing is strict: a text is an action or it is not, and one that is not is a counted step that does nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Grammar:
    """The verbs of a skill set."""

    verbs_alone: tuple[str, ...]
    verbs_with_object: tuple[str, ...]


GRAMMAR = Grammar(
    verbs_alone=(
        "MoveAhead", "MoveBack", "RotateLeft", "RotateRight", "LookUp", "LookDown", "Drop", "Throw", "Done",
    ),
    verbs_with_object=(
        "Approach", "PickUp", "Put", "Open", "Close", "ToggleOn", "ToggleOff", "Slice", "Break", "Dirty", "Clean",
        "Fill", "Empty",
    ),
)  # fmt: skip
"""The `household` skill set. `primitives` is the same without Approach."""

SKILL_SETS = {
    "household": GRAMMAR,
    "primitives": Grammar(GRAMMAR.verbs_alone, GRAMMAR.verbs_with_object[1:]),
}
DONE = "Done"
_PATTERN = re.compile(r"([A-Z][A-Za-z]*)(?:\(([A-Z][A-Za-z]*)\))?")


@dataclass(frozen=True)
class Action:
    """A parsed action; ``object_type`` is an AI2-THOR type, or None for a verb that stands alone."""

    verb: str
    object_type: str | None = None

    def __str__(self) -> str:
        return self.verb if self.object_type is None else f"{self.verb}({self.object_type})"


def parse_action(text: str, skill_set: str = "household") -> Action | None:
    """The action that the whole text spells, or None. Only white space around it is forgiven."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        return None
    verb, object_type = match.groups()
    grammar = SKILL_SETS[skill_set]
    known = grammar.verbs_alone if object_type is None else grammar.verbs_with_object
    return Action(verb, object_type) if verb in known else None


def format_action(action: Action) -> str:
    """The text of an action; :func:`parse_action` reads it back."""
    return str(action)
