"""Training rows decoded from the tensors of a batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selu.seen_rows import decode_row
from tests.tiny_models import ARCHITECTURES, _pil


class Words:
    """A tokenizer whose tokens are words."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(("<pad>", "<image>", "was", "it", "done", "yes", "</s>")[token] for token in ids)


def slope(width: int, height: int) -> Image.Image:
    """Red from left to right, green from top to bottom: a mistake in the order of patches or channels shows."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 60)], axis=-1).astype(np.uint8))


def batch_of(pixels: dict[str, Any]) -> dict[str, Any]:
    ids = torch.tensor([[1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 0, 0]])
    mask = torch.tensor([[1] * 10 + [0] * 2])
    labels = torch.where((ids >= 5) & mask.bool(), ids, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, **pixels}


def test_qwens_patches_become_the_picture_again() -> None:
    """Flattened by squares of patches, and twice over in time; the picture is wider than high."""
    side = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    patches = _pil("qwen2_vl", "Qwen2VLImageProcessorPil")(
        patch_size=14, merge_size=2, temporal_patch_size=2, size=side
    )
    pixels = patches(images=[slope(112, 56)], return_tensors="pt")
    seen, picture = decode_row(3, batch_of(pixels), SimpleNamespace(tokenizer=Words(), image_processor=patches))
    assert [(piece.text, piece.times, piece.learned) for piece in seen.pieces] == [
        ("<image>", 5, False),
        ("was it done", 1, False),
        ("yes </s>", 1, True),
    ]
    assert (seen.row, seen.tokens, seen.learned) == (3, 10, 2)
    assert picture.size == (112, 56)
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(slope(112, 56))).max() <= 1


def test_tiles_stand_beside_each_other() -> None:
    _, processor = ARCHITECTURES["idefics3"]()
    pixels = processor.image_processor(images=[[slope(64, 64)]], return_tensors="pt")
    tiles = pixels["pixel_values"].shape[1]
    _, sheet = decode_row(
        0, batch_of(pixels), SimpleNamespace(tokenizer=Words(), image_processor=processor.image_processor)
    )
    assert tiles == 5, "four quarters and the whole"
    assert sheet.size == (5 * 32 + 4 * 2, 32)
    first = np.asarray(sheet).astype(int)[:, :32]
    assert np.abs(first - np.asarray(slope(64, 64))[:32, :32]).max() <= 1


def test_patches_without_their_places_are_no_picture() -> None:
    """As of LFM2-VL: (pictures, patches, a patch's numbers)."""
    pixels = {"pixel_values": torch.zeros(1, 64, 768)}
    _, processor = ARCHITECTURES["idefics3"]()
    with pytest.raises(ValueError, match=r"got the shape \(1, 64, 768\)"):
        decode_row(0, batch_of(pixels), SimpleNamespace(tokenizer=Words(), image_processor=processor.image_processor))
