"""What an actor remembers of its own actions; its prompt says no more of what came before the frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from selu.config import RolloutSettings
from selu.deeds import is_doing
from selu.worlds.actions import parse_action

__all__ = ["NO_MEMORY", "Memory"]


class Memory(BaseModel):
    """How many actions are remembered, and which: `rollout.history` and `rollout.remember`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    history: int = Field(default=0, ge=0, description="most actions")
    remember: Literal["last", "interactions"] = Field(default="last", description="which of them")

    @classmethod
    def of(cls, rollout: RolloutSettings) -> Memory:
        """The memory that the settings ask for; of one action it is the last either way."""
        return cls(history=rollout.history, remember=rollout.remember if rollout.history > 1 else "last")

    def recall(self, actions: Sequence[str], skill_set: str) -> tuple[str, ...]:
        """What is remembered of the `actions` written so far, oldest first; text that is no action of the skill set among it.

        The last ones; but of `interactions`, those from before the latest half push out turns and walks, so that an actor which
        looks around for the second thing still knows what it did to the first.
        """
        if len(actions) <= self.history:
            return tuple(actions)
        latest = math.ceil(self.history / 2) if self.remember == "interactions" else self.history
        earlier = range(len(actions) - latest)
        # Interactions first and then the rest, the latest first of either.
        by_worth = sorted(earlier, key=lambda index: (not _lasts(actions[index], skill_set), -index))
        kept = sorted([*by_worth[: self.history - latest], *range(len(earlier), len(actions))])
        return tuple(actions[index] for index in kept)


NO_MEMORY = Memory()


def _lasts(action: str, skill_set: str) -> bool:
    return parse_action(action, skill_set) is not None and is_doing(action)
