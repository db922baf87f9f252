"""Training rows as tensors, made once for all epochs.

A trainer that collates its rows anew at each step decodes, scales and looks at every picture in every epoch. Where no
adapter reaches the vision tower or the connector, what they make of a picture never changes: it is computed once and
handed to the model in place of the pixels. On a CPU, looking is most of the time of a step of a small model.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers.modeling_outputs import BaseModelOutputWithPooling

from selu.models.reading import image_features

__all__ = ["Examples"]

_ROWS_AT_A_TIME = 64
_MOST_BYTES = 2**31
"""Features of a large model's many pictures would fill the memory; beyond this, rows are collated anew at each step."""


class Examples(Dataset[dict[str, Any]]):
    """Rows for a trainer, with :meth:`collate` to make batches of them."""

    def __init__(
        self,
        rows: Sequence[tuple[dict[str, torch.Tensor], int]],
        features: torch.Tensor,
        padding: int,
        *,
        listed: bool = False,
    ) -> None:
        """`rows` are (token ids, labels and what else is said of each token, picture); `features` (pictures, tokens, width)
        is what the model sees, which it takes as a list with an entry for each picture if `listed`."""
        self._rows, self._features, self._padding, self._listed = rows, features, padding, listed

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens, picture = self._rows[index]
        return {**tokens, "picture": picture}

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch, padded on the right."""
        tokens = [row["input_ids"] for row in rows]
        seen: Any = self._features[[row["picture"] for row in rows]]
        if self._listed:
            seen = list(seen)
        paddings = {"input_ids": self._padding, "labels": -100}
        return {
            **{
                key: pad_sequence([row[key] for row in rows], batch_first=True, padding_value=paddings.get(key, 0))
                for key in rows[0]
                if key != "picture"
            },
            "attention_mask": pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True),
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=seen)},
        }

    @classmethod
    def of(cls, rows: Any, collate: Callable[[list[Any]], Any], model: Any, padding: int) -> Examples | None:
        """The rows of a dataset as the trainer's own `collate` makes them; None where the model does not take features.

        `model` is the bare model, without adapters: nothing of it that looks at pictures may be trained.
        """
        if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            return None
        pictures: dict[bytes, int] = {}
        features: list[torch.Tensor] = []
        listed = False
        made: list[tuple[dict[str, torch.Tensor], int]] = []
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            some = [rows[index] for index in range(start, min(start + _ROWS_AT_A_TIME, len(rows)))]
            if any(len(row["images"]) != 1 for row in some):
                return None
            keys = [_picture_key(row["images"][0]) for row in some]
            # Copied for aligned memory: the processor's arrays are numpy's, and sums over others round differently.
            batch = {key: value.clone() for key, value in collate(some).items()}
            new = list({key: place for place, key in reversed(list(enumerate(keys))) if key not in pictures}.values())
            new.sort()
            if new:
                looked = image_features(model, batch, len(some), new)
                if looked is None or (len(pictures) + len(new)) * looked[0].nbytes > _MOST_BYTES:
                    return None
                listed = not isinstance(looked, torch.Tensor)
                for place, feature in zip(new, looked, strict=True):
                    pictures[keys[place]] = len(features)
                    features.append(feature)
            # Token ids, labels, and in some architectures which tokens are of a picture or of the prompt.
            per_token = [
                name
                for name, value in batch.items()
                if value.shape == batch["input_ids"].shape and name != "attention_mask"
            ]
            for place, key in enumerate(keys):
                kept = batch["attention_mask"][place].bool()
                made.append(({name: batch[name][place][kept] for name in per_token}, pictures[key]))
        if len({feature.shape for feature in features}) != 1:
            return None
        return cls(made, torch.stack(features), padding, listed=listed)


def _picture_key(picture: Any) -> bytes:
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest()
