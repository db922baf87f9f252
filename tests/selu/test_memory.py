"""What an actor remembers of its own actions."""

from __future__ import annotations

import pytest

from selu.config import RolloutSettings
from selu.memory import Memory

TURNS = ("RotateLeft", "RotateRight", "LookUp", "LookDown")


@pytest.mark.parametrize(
    ("actions", "remembered"),
    [
        ((), ()),
        (("Open(Fridge)", *TURNS[:3]), ("Open(Fridge)", *TURNS[:3])),
        (("Open(Fridge)", *TURNS), ("Open(Fridge)", "RotateRight", "LookUp", "LookDown")),
        (("Approach(Fridge)", "Open(Fridge)", "PickUp(Egg)", *TURNS), ("Open(Fridge)", "PickUp(Egg)", *TURNS[2:])),
        (("Open(Fridge)", "PickUp(Egg)", "Put(Sink)", *TURNS[:2]), ("PickUp(Egg)", "Put(Sink)", *TURNS[:2])),
        # A walk lasts no longer than a turn, nor does what is no action of the skill set.
        (("Approach(Fridge)", "Forward", "SwitchOn(Lamp)", "open it", *TURNS), TURNS),
    ],
)
def test_interactions_outlast_turns_and_walks(actions: tuple[str, ...], remembered: tuple[str, ...]) -> None:
    assert Memory(history=4, remember="interactions").recall(actions, "household") == remembered


@pytest.mark.parametrize(
    ("room", "remembered"), [(0, ()), (1, ("LookDown",)), (3, ("RotateRight", "LookUp", "LookDown"))]
)
def test_the_last_actions_are_remembered(room: int, remembered: tuple[str, ...]) -> None:
    assert Memory(history=room).recall(("Open(Fridge)", *TURNS), "household") == remembered


def test_with_room_for_one_it_is_the_last() -> None:
    assert Memory(history=1, remember="interactions").recall(("Open(Fridge)", *TURNS), "household") == ("LookDown",)


def test_the_settings_say_what_is_remembered() -> None:
    assert Memory.of(RolloutSettings(history=3, remember="last")) == Memory(history=3)
    assert Memory.of(RolloutSettings()) == Memory(history=4, remember="interactions")
    # It is the same memory, so that it has one name.
    assert Memory.of(RolloutSettings(history=1)) == Memory(history=1, remember="last")
