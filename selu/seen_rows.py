"""A training row as the model gets it, turned back into what a person can read.

What a row says in the dataset and what reaches the model are two things: a chat template, a tokenizer, an image
processor and a collator lie between them, and each can lose something without a word. So a row is decoded from the very
tensors of a batch: its token ids, its labels, its pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["PICTURE", "ROW", "SeenPiece", "SeenRow", "decode_row", "write_seen_row"]

ROW, PICTURE = "seen_row.json", "seen_row.png"

# Shorter runs are easier to read as they are.
_SHORTEST_RUN = 4
_GAP = 2


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SeenPiece(_Part):
    """Neighbouring tokens of one kind."""

    text: str = Field(description="decoded, control tokens included")
    times: int = Field(default=1, description="how often it stands there in a row")
    learned: bool = Field(description="the loss lies on it")


class SeenRow(_Part):
    """One training row, decoded from the tensors that the model is given."""

    row: int = Field(description="its place in the dataset version")
    tokens: int = Field(description="without padding")
    learned: int = Field(description="tokens that the loss lies on")
    pieces: tuple[SeenPiece, ...]


def decode_row(row: int, batch: Mapping[str, Any], processor: Any) -> tuple[SeenRow, Image.Image]:
    """The first row of a collated batch, and its pictures (or the tiles they were cut into) beside each other.

    `batch` has the processor's ``input_ids``, ``attention_mask`` and ``pixel_values``, and ``labels``, -100 where no loss is.

    Raises:
        ValueError: ``pixel_values`` are neither pictures nor Qwen's rows of patches. Of architectures that nobody tried here
            it may be another error.
    """
    kept = batch["attention_mask"][0].bool()
    ids: list[int] = batch["input_ids"][0][kept].tolist()
    learned: list[bool] = (batch["labels"][0][kept] != -100).tolist()
    pieces: list[SeenPiece] = []
    plain: list[int] = []

    def decoded(tokens: Sequence[int]) -> str:
        text: str = processor.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    for is_learned, same in itertools.groupby(zip(ids, learned, strict=True), key=lambda token: token[1]):
        for token, run in itertools.groupby(token for token, _ in same):
            times = sum(1 for _ in run)
            if times < _SHORTEST_RUN:
                plain += [token] * times
                continue
            if plain:
                pieces.append(SeenPiece(text=decoded(plain), learned=is_learned))
            pieces.append(SeenPiece(text=decoded([token]), times=times, learned=is_learned))
            plain = []
        if plain:
            pieces.append(SeenPiece(text=decoded(plain), learned=is_learned))
            plain = []
    seen = SeenRow(row=row, tokens=len(ids), learned=sum(learned), pieces=tuple(pieces))
    return seen, _beside_each_other(_pictures(batch, processor.image_processor))


def write_seen_row(out: Path, seen: SeenRow, picture: Image.Image) -> None:
    """Write both into the folder `out`; equal rows give equal bytes."""
    (out / ROW).write_text(seen.model_dump_json(indent=1) + "\n", encoding="utf-8")
    picture.save(out / PICTURE)


def _pictures(batch: Mapping[str, Any], image_processor: Any) -> list[NDArray[np.uint8]]:
    """``pixel_values`` as pictures, each (H, W, 3), with the processor's scaling undone."""
    values: NDArray[np.float32] = batch["pixel_values"].float().cpu().numpy()
    if values.ndim > 3:
        # Pictures, or their tiles, whatever they are grouped by.
        pictures = list(values.reshape(-1, *values.shape[-3:]))
    elif values.ndim == 2:
        pictures = _from_patches(values, batch["image_grid_thw"].tolist(), image_processor)
    else:
        # Patches without their places (LFM2-VL, SigLIP 2 NaFlex) would pass for a picture.
        raise ValueError(f"pixel_values must be pictures or rows of patches, got the shape {values.shape}")
    if image_processor.do_normalize:
        mean, std = (np.reshape(scale, (-1, 1, 1)) for scale in (image_processor.image_mean, image_processor.image_std))
        pictures = [picture * std + mean for picture in pictures]
    return [
        np.clip(np.rint(picture.transpose(1, 2, 0) / image_processor.rescale_factor), 0, 255).astype(np.uint8)
        for picture in pictures
    ]


def _from_patches(
    values: NDArray[np.float32], grids: Sequence[tuple[int, int, int]], image_processor: Any
) -> list[NDArray[np.float32]]:
    """Pictures (3, H, W) out of Qwen's rows of patches, which come by squares of `merge_size` and twice over in time."""
    patch, merge, times = image_processor.patch_size, image_processor.merge_size, image_processor.temporal_patch_size
    pictures, start = [], 0
    for time, height, width in grids:
        rows = values[start : start + time * height * width]
        start += len(rows)
        squares = rows.reshape(time, height // merge, width // merge, merge, merge, -1, times, patch, patch)[
            0, ..., 0, :, :
        ]
        pictures.append(squares.transpose(4, 0, 2, 5, 1, 3, 6).reshape(-1, height * patch, width * patch))
    return pictures


def _beside_each_other(pictures: Sequence[NDArray[np.uint8]]) -> Image.Image:
    width = sum(picture.shape[1] + _GAP for picture in pictures) - _GAP
    sheet = Image.new("RGB", (width, max(picture.shape[0] for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(Image.fromarray(picture), (left, 0))
        left += picture.shape[1] + _GAP
    return sheet
