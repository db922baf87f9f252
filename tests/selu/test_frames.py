"""Which frames are extracted, and that a picture survives its encoding."""

from __future__ import annotations

import numpy as np
import pytest

from selu.config import FrameSettings
from selu.errors import ArtifactError
from selu.frames import FrameTable, decode_picture, encode_picture, select_frames
from tests.scripted_model import make_episode, picture

ACTIONS = ["MoveAhead", "Open(Fridge)", "RotateLeft", "PickUp(Mug)", "gibberish", "Done"]


def _select(select: str, limit: int = 8) -> list[int]:
    _, steps, _ = make_episode("e", "open the fridge", ACTIONS, [0] * 7)
    return select_frames(steps, 6, FrameSettings.model_validate({"select": select, "limit": limit}))


def test_interactions_take_before_and_after_and_the_end() -> None:
    assert _select("interactions") == [1, 2, 3, 4, 6]


def test_a_limit_drops_the_earliest_pair_whole() -> None:
    assert _select("interactions", limit=4) == [3, 4, 6]
    assert _select("interactions", limit=1) == [6]


def test_last_and_all() -> None:
    assert _select("last") == [6]
    assert _select("all", limit=20) == [0, 1, 2, 3, 4, 5, 6]
    assert _select("all", limit=3) == [4, 5, 6]


def test_an_action_that_follows_another_shares_its_frame() -> None:
    _, steps, _ = make_episode("e", "x", ["Open(Fridge)", "Close(Fridge)"], [0, 1, 2])
    assert select_frames(steps, 2, FrameSettings(select="interactions")) == [0, 1, 2]


def test_pictures_survive_encoding_and_bytes_repeat() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    assert np.array_equal(decode_picture(encode_picture(noise)), noise)
    assert encode_picture(noise) == encode_picture(noise.copy())
    with pytest.raises(ValueError, match="must be"):
        encode_picture(noise[..., 0])
    with pytest.raises(ArtifactError, match="not a picture"):
        decode_picture(b"no png")


def test_a_frame_that_was_not_extracted_is_named() -> None:
    _, _, frames = make_episode("e", "x", ["Open(Fridge)"], [3, 3])
    table = FrameTable(frames)
    assert table.same_picture("e", 0, 1)
    assert np.array_equal(table.picture("e", 1), picture(3))
    with pytest.raises(ArtifactError, match="frame 7 of episode e"):
        table.picture("e", 7)
