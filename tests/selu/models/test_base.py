"""What prompts have in common."""

from __future__ import annotations

import numpy as np

from selu.models.base import Prompt


def test_pictures_are_told_apart_by_what_they_show() -> None:
    wide, tall = np.zeros((2, 3, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)
    key = Prompt((wide,), "Is it open?").picture_key
    assert Prompt((wide.copy(),), "Is it on?").picture_key == key
    others = [(tall,), (wide + 1,), (wide, wide), ()]
    assert len({key, *(Prompt(images, "Is it open?").picture_key for images in others)}) == 5
