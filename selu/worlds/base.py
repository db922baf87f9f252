"""The contract that every world fulfils."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from selu.errors import WorldError
from selu.records import Condition, Task

logger = logging.getLogger(__name__)

Frame = NDArray[np.uint8]
T = TypeVar("T")

PREDICATES = ("held", "open", "closed", "on", "off", "inside", "broken", "sliced", "dirty", "clean", "filled", "empty")


@dataclass(frozen=True)
class OracleState:
    """The truth about the present moment. Only a rollout's recorder asks for it, and only evaluation reads it.

    ``facts`` lists object types by predicate (``inside``: pairs of type and receptacle type). ``closed``, ``off``,
    ``clean`` and ``empty`` list the types of which no instance is open, on, dirty or filled. A world may add
    ``in_view``, the types that its frame shows.
    """

    action_success: bool
    error_message: str
    facts: Mapping[str, Any]


def until_it_lasts(attempt: Callable[[], T], restarts: int, lost: type[WorldError] = WorldError) -> T:
    """What an attempt gives; one in which the world is lost is made again, `restarts` times at most.

    Raises:
        WorldError: as the last attempt did; another than `lost` at once.
    """
    for _ in range(restarts):
        try:
            return attempt()
        except lost as error:
            logger.warning("%s It is tried again.", error)
    return attempt()


def lacking(facts: Mapping[str, Any]) -> list[str]:
    """Predicates that a world says nothing of, which it must."""
    return [name for name in PREDICATES if name not in facts]


def holds(goal: tuple[Condition, ...], facts: Mapping[str, Any]) -> bool:
    """Whether every condition of a goal is among the facts; an empty goal never holds."""
    return bool(goal) and all(
        ([c.object_type, c.receptacle_type] if c.predicate == "inside" else c.object_type) in facts[c.predicate]
        for c in goal
    )


class World(gymnasium.Env[Frame, str]):
    """A Gymnasium environment with RGB observations ``(H, W, 3) uint8`` and actions as text.

    ``reset(seed=, options={"task": Task})`` gives ``(frame, {})``; ``step(text)`` gives ``(frame, 0.0, terminated,
    truncated, {})``. There is no reward and the info is empty: what a world knows is asked by :meth:`oracle` alone. An
    episode terminates on the actor's own ``Done`` and is truncated at the step limit, never because a goal was reached.
    A text that is no action counts as a step and does nothing.
    """

    skill_set: str = "household"
    """Which actions it knows: a key of :data:`~selu.worlds.actions.SKILL_SETS`."""

    @abstractmethod
    def oracle(self) -> OracleState:
        """The truth about the present moment."""

    @property
    @abstractmethod
    def task(self) -> Task:
        """The task of the running episode."""

    @abstractmethod
    def candidates(self) -> Mapping[str, Any]:
        """Ground truth for the scripted planner: ``metadata`` of the scene as the simulator gives it, ``areas`` (pixels
        in view by object id), ``reachable`` positions (n, 2) and one ``stride`` in metres, one ``turn`` in degrees."""
