"""The actor's action grammar: navigation primitives and ``Verb(ObjectType)`` interactions, as text.

Parsing is strict: a text is an action or it is not, and one that is not is a counted step that does nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from selu.errors import ConfigError
from selu.worlds.own import imported


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


class _SkillSets(dict[str, Grammar]):
    """Grammars by name; one of a user's own, ``package.module:GRAMMAR``, is imported when it is first looked up."""

    def __missing__(self, name: str) -> Grammar:
        if ":" not in name:
            raise ConfigError(f"there is no skill set {name!r}; known ones are {', '.join(self)}")
        grammar = imported(name, "world.skill_set")
        if not isinstance(grammar, Grammar):
            raise ConfigError(
                f"world.skill_set={name}: must be a selu.worlds.actions.Grammar, got {type(grammar).__name__}"
            )
        if DONE not in grammar.verbs_alone:
            raise ConfigError(f"world.skill_set={name}: its verbs_alone must have {DONE}, with which an actor ends")
        self[name] = grammar
        return grammar


DONE = "Done"
SKILL_SETS: dict[str, Grammar] = _SkillSets(
    {
        "household": GRAMMAR,
        "primitives": Grammar(GRAMMAR.verbs_alone, GRAMMAR.verbs_with_object[1:]),
        # VirtualHome's program actions; those of two objects (PutBack, PutIn) take what is in hand for the first.
        "virtualhome": Grammar(
            ("RotateLeft", "RotateRight", "StandUp", DONE),
            ("Walk", "Open", "Close", "Grab", "PutBack", "PutIn", "SwitchOn", "SwitchOff", "Sit"),
        ),
    }
)
_PATTERN = re.compile(r"([A-Z][A-Za-z]*)(?:\(([A-Z][A-Za-z]*)\))?")


@dataclass(frozen=True)
class Action:
    """A parsed action; ``object_type`` is a type of the world's, or None for a verb that stands alone."""

    verb: str
    object_type: str | None = None

    def __str__(self) -> str:
        return self.verb if self.object_type is None else f"{self.verb}({self.object_type})"


def parse_action(text: str, skill_set: str | None = None) -> Action | None:
    """The action that the whole text spells in a skill set (None: in any), or None. White space around it is forgiven."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        return None
    verb, object_type = match.groups()
    for grammar in list(SKILL_SETS.values()) if skill_set is None else [SKILL_SETS[skill_set]]:
        if verb in (grammar.verbs_alone if object_type is None else grammar.verbs_with_object):
            return Action(verb, object_type)
    return None


def format_action(action: Action) -> str:
    """The text of an action; :func:`parse_action` reads it back."""
    return str(action)
