"""What the actor did, as far as its own words and its own eyes tell.

A *deed* is an interaction that the actor wrote and upon which the picture changed. That is no truth of the world: a
simulator's "success" is not asked, and a picture may change for other reasons. But nothing gets done without a deed, so
it is evidence that owes nothing to the critic's answers about how things look.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from selu.frames import FrameTable, is_interaction
from selu.prompting import Achievement, achievements
from selu.records import Step
from selu.worlds.actions import read_action
from selu.worlds.tasks import steps_of
from selu.worlds.vocabulary import spoken_name

__all__ = ["WALKING", "Deed", "could_have_done", "deed_that_did", "deeds_of", "is_doing", "names_place", "undoes"]

_OPPOSITES = {
    "Open": "Close",
    "Close": "Open",
    "ToggleOn": "ToggleOff",
    "ToggleOff": "ToggleOn",
    "SwitchOn": "SwitchOff",
    "SwitchOff": "SwitchOn",
}
_TAKING = frozenset({"PickUp", "Grab"})
_LETTING_GO = frozenset({"Put", "PutBack", "PutIn", "Drop", "Throw"})
WALKING = frozenset({"Approach", "Walk"})


@dataclass(frozen=True)
class Deed:
    """An interaction after which the picture was another; `name` is the spoken name of the thing it names, if any.

    Where the frames around it were not extracted, nobody knows whether it changed anything: it was not `seen`.
    """

    step: int
    verb: str
    name: str
    action: str
    seen: bool = True


@dataclass(frozen=True)
class _Part:
    """A one-step instruction: the verb that fulfils it, what is handled, and the place where it is put."""

    verb: str
    thing: str
    place: str

    def done_by(self, deed: Deed) -> bool:
        return deed.verb == self.verb and deed.name == (self.place or self.thing)

    def undone_by(self, deed: Deed) -> bool:
        if self.verb in _TAKING:
            return deed.verb in _LETTING_GO
        if self.verb in _LETTING_GO:
            return deed.verb in _TAKING and deed.name == self.thing
        if self.verb == "Sit":
            return deed.verb == "StandUp"
        return deed.verb == _OPPOSITES.get(self.verb) and deed.name == self.thing


def is_doing(action: str) -> bool:
    """Whether the actor's own text names a thing to do something with, other than walking up to it (not whether it was done)."""
    read = read_action(action)
    return is_interaction(action) and read is not None and read.verb not in WALKING


def names_place(achievement: Achievement) -> bool:
    """Whether the verb's object is a place, so that its words do not tell what was put there."""
    return "{b}" in achievement.instruction


def deeds_of(steps: Iterable[Step], frames: FrameTable) -> list[Deed]:
    """The deeds of one episode, in order, among them those interactions of which no frames tell."""
    found = []
    for step in sorted(steps, key=lambda step: step.step):
        action = read_action(step.action) if step.well_formed and is_doing(step.action) else None
        if action is None:
            continue
        seen = all((step.episode_id, index) in frames for index in (step.step, step.step + 1))
        if not seen or not frames.same_picture(step.episode_id, step.step, step.step + 1):
            name = spoken_name(action.object_type) if action.object_type else ""
            found.append(Deed(step.step, action.verb, name, step.action, seen))
    return found


def could_have_done(instruction: str, deeds: Sequence[Deed]) -> bool | None:
    """Whether there are deeds, in order and not undone, that the parts of an instruction ask for.

    None for words of another kind, and where it hangs on interactions that were not seen.
    """
    parts = _parts(instruction)
    if parts is None:
        return None
    if _lasting(parts, deeds, sure=True) is not None:
        return True
    return None if _lasting(parts, deeds, sure=False) is not None else False


def deed_that_did(instruction: str, deeds: Sequence[Deed]) -> Deed | None:
    """The deed that fulfilled the last part of an instruction, so that right before it the whole was not yet done."""
    parts = _parts(instruction)
    return None if parts is None else _lasting(parts, deeds, sure=True)


def undoes(deeds: Iterable[Deed], instruction: str) -> bool:
    """Whether any of the deeds, seen or not, would undo what an instruction asks for; False for words of another kind."""
    parts = _parts(instruction) or ()
    return any(part.undone_by(deed) for deed in deeds for part in parts)


def _lasting(parts: Sequence[_Part], deeds: Sequence[Deed], *, sure: bool) -> Deed | None:
    """The last of the first deeds, in order, that did each part and that nothing undid; None if a part has none.

    To be `sure`, what did it must have been seen, and what could undo it counts seen or not; otherwise the reverse.
    """
    place, last = 0, None
    for part in parts:
        for number in range(place, len(deeds)):
            later = deeds[number + 1 :]
            if (
                part.done_by(deeds[number])
                and (deeds[number].seen or not sure)
                and not any(part.undone_by(deed) and (deed.seen or sure) for deed in later)
            ):
                place, last = number + 1, deeds[number]
                break
        else:
            return None
    return last


@cache
def _parts(instruction: str) -> tuple[_Part, ...] | None:
    parts = []
    for text in steps_of(instruction):
        for verb, achievement in achievements().items():
            pattern = achievement.instruction.format(a="(?P<a>.+?)", b="(?P<b>.+?)", preposition="(?:in|on)")
            found = re.fullmatch(pattern, text)
            if found is not None:
                named = found.groupdict()
                parts.append(_Part(verb, named["a"], named.get("b", "")))
                break
        else:
            return None
    return tuple(parts)
