"""What an actor remembers of its own actions; its prompt says no more of what came before the frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from selu.config import RolloutSettings
from selu.deeds import WALKING
from selu.frames import is_interaction
from selu.worlds.actions import read_action

__all__ = ["NO_MEMORY", "Memory"]


class Memory(BaseModel):
    """Room for so many actions, and which of them are kept (`rollout.history` and `rollout.remember`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    room: int = 0
    keeps: Literal["last", "interactions"] = "last"

    @classmethod
    def of(cls, rollout: RolloutSettings) -> Memory:
        """The memory that the settings ask for."""
        return cls(room=rollout.history, keeps=rollout.remember)

    def recall(self, actions: Sequence[str]) -> tuple[str, ...]:
        """Those of its `actions` that it remembers, at most `room`, oldest first.

        The last ones; but if it keeps interactions, those from before the latest half of the room push out turns and walks, so
        that an actor which looks around for the second thing still knows what it did to the first.
        """
        if len(actions) <= self.room:
            return tuple(actions)
        latest = math.ceil(self.room / 2) if self.keeps == "interactions" else self.room
        earlier = range(len(actions) - latest)
        # Interactions first and then the rest, the latest first of either.
        by_worth = sorted(earlier, key=lambda index: (not _lasts(actions[index]), -index))
        kept = sorted([*by_worth[: self.room - latest], *range(len(earlier), len(actions))])
        return tuple(actions[index] for index in kept)


NO_MEMORY = Memory()


def _lasts(action: str) -> bool:
    read = read_action(action)
    return is_interaction(action) and read is not None and read.verb not in WALKING
