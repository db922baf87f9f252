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

from selu.frames import FrameTable
from selu.prompting import Achievement, achievements
from selu.records import Step
from selu.worlds.actions import parse_action
from selu.worlds.tasks import steps_of
from selu.worlds.vocabulary import spoken_name

__all__ = ["Deed", "could_have_done", "deeds_of", "names_place"]


@dataclass(frozen=True)
class Deed:
    """An interaction after which the picture was another; `name` is the spoken name of the thing it names."""

    step: int
    verb: str
    name: str
    action: str


def names_place(achievement: Achievement) -> bool:
    """Whether the verb's object is a place, so that its words do not tell what was put there."""
    return "{b}" in achievement.instruction


def deeds_of(steps: Iterable[Step], frames: FrameTable) -> list[Deed] | None:
    """The deeds of one episode, in order; None if frames right before or after an interaction were not extracted."""
    found = []
    for step in sorted(steps, key=lambda step: step.step):
        action = parse_action(step.action) if step.well_formed else None
        if action is None or action.object_type is None or action.verb not in achievements():
            continue
        if any((step.episode_id, index) not in frames for index in (step.step, step.step + 1)):
            return None
        if not frames.same_picture(step.episode_id, step.step, step.step + 1):
            found.append(Deed(step.step, action.verb, spoken_name(action.object_type), step.action))
    return found


def could_have_done(instruction: str, deeds: Sequence[Deed]) -> bool | None:
    """Whether there are deeds, in order, that the parts of an instruction ask for; None for words of another kind."""
    done, place = True, 0
    for part in steps_of(instruction):
        if not any(re.fullmatch(_pattern(verb, ".+?"), part) for verb in achievements()):
            return None
        fitting = (
            number
            for number, deed in enumerate(deeds)
            if number >= place and re.fullmatch(_pattern(deed.verb, re.escape(deed.name)), part)
        )
        first = next(fitting, None)
        if first is None:
            done = False
        else:
            place = first + 1
    return done


@cache
def _pattern(verb: str, name: str) -> str:
    """The instruction that a verb fulfils, with `name` (a regular expression) for the thing that the verb names."""
    achievement = achievements()[verb]
    thing, place = (".+?", name) if names_place(achievement) else (name, "")
    return achievement.instruction.format(a=f"(?:{thing})", b=f"(?:{place})", preposition="(?:in|on)")
