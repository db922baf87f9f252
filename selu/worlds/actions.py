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
        for verb in (*grammar.verbs_alone, *grammar.verbs_with_object):
            if not isinstance(verb, str) or read_action(verb) != Action(verb):
                raise ConfigError(
                    f"world.skill_set={name}: the verb {verb!r} could never be read; verbs and types of objects are letters "
                    "that begin with a capital, such as MoveAhead and Open(GarageDoor)"
                )
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


def parse_action(text: str, skill_set: str) -> Action | None:
    """The action that the whole text spells in a skill set, or None. White space around it is forgiven."""
    action, grammar = read_action(text), SKILL_SETS[skill_set]
    if action is None:
        return None
    known = grammar.verbs_alone if action.object_type is None else grammar.verbs_with_object
    return action if action.verb in known else None


def read_action(text: str) -> Action | None:
    """The action that the whole text spells by its form, whichever grammar it is of, or None.

    It is for what was parsed when it was said (a well-formed :class:`~selu.records.Step`), by whoever does not know in
    which world that was.
    """
    match = _PATTERN.fullmatch(text.strip())
    return None if match is None else Action(*match.groups())


def format_action(action: Action) -> str:
    """The text of an action; :func:`parse_action` reads it back."""
    return str(action)
