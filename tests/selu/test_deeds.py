"""What the actor did, as far as it can be told from its words and from what it saw."""

from __future__ import annotations

import pytest

from selu.deeds import could_have_done, deed_that_did, deeds_of
from selu.frames import FrameTable
from tests.scripted_model import make_episode


def _able(instruction: str, actions: list[str], *, unseen: int = 0) -> bool | None:
    """Whether `actions` could have done it, when each changed the picture and the first `unseen` frames are missing."""
    _, steps, frames = make_episode("e", instruction, actions, list(range(10, 11 + len(actions))))
    return could_have_done(instruction, deeds_of(steps, FrameTable(frames[unseen:])))


@pytest.mark.parametrize(
    ("instruction", "actions", "able"),
    [
        ("open the fridge", ["Open(Fridge)"], True),
        ("open the fridge", ["Open(Drawer)"], False),
        ("open the fridge", ["Open(Fridge)", "Close(Fridge)"], False),
        ("open the fridge", ["Open(Fridge)", "Close(Drawer)"], True),
        ("open the fridge", ["Open(Fridge)", "Close(Fridge)", "Open(Fridge)"], True),
        ("turn off the faucet", ["ToggleOff(Faucet)", "ToggleOn(Faucet)"], False),
        ("pick up the mug", ["PickUp(Mug)", "Drop"], False),
        ("pick up the mug", ["PickUp(Mug)", "Put(Fridge)", "PickUp(Mug)"], True),
        ("put the mug in the fridge", ["PickUp(Mug)", "Put(Fridge)"], True),
        ("put the mug in the fridge", ["Put(Fridge)", "PickUp(Mug)"], False),
        ("put the mug in the fridge", ["Put(Fridge)", "PickUp(Apple)"], True),
        ("break the mug", ["Break(Mug)"], True),
        ("open the fridge and then pick up the mug", ["Open(Fridge)", "PickUp(Mug)"], True),
        ("open the fridge and then pick up the mug", ["PickUp(Mug)", "Open(Fridge)"], False),
        ("open the fridge and then pick up the mug", ["Open(Fridge)", "PickUp(Mug)", "Close(Fridge)"], False),
        ("make the room cosy", ["Open(Fridge)"], None),
    ],
)
def test_what_is_done_in_order_and_not_undone_counts(instruction: str, actions: list[str], able: bool | None) -> None:
    assert _able(instruction, actions) is able


def test_what_was_not_seen_decides_nothing_by_itself() -> None:
    assert _able("open the fridge", ["Open(Fridge)", "Open(Drawer)"], unseen=1) is None
    assert _able("open the box", ["Open(Fridge)", "Open(Drawer)"], unseen=1) is False
    assert _able("open the drawer", ["Open(Fridge)", "Open(Drawer)"], unseen=1) is True


def test_the_deed_that_did_it_is_the_first_that_lasted() -> None:
    actions = ["Open(Fridge)", "Close(Fridge)", "MoveAhead", "Open(Fridge)", "Open(Drawer)"]
    _, steps, frames = make_episode("e", "open the fridge", actions, [10, 11, 12, 13, 14, 15])
    deeds = deeds_of(steps, FrameTable(frames))
    did = deed_that_did("open the fridge", deeds)
    assert did is not None
    assert did.step == 3
    assert deed_that_did("open the box", deeds) is None
