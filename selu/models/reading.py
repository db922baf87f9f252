"""Prompts as a model takes them: each picture prepared and looked at once, and each text turned into tokens once.

The critic asks many questions about a frame, and the same questions about many frames. With a small model a processor that
prepares the picture anew for each of them takes longer than the model needs for the answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from selu.errors import ConfigError, first_line
from selu.models.base import Prompt

__all__ = ["Batch", "Reader", "conversation", "image_features"]

# What a processor gives for each token.
_BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")

# Texts whose tokens are kept: a round of the default size asks some 3,000 different questions.
_KEPT_TEXTS = 8192


def conversation(text: str, images: int) -> list[dict[str, Any]]:
    """A user's turn for a chat template: pictures, then text."""
    return [{"role": "user", "content": [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]}]


def image_features(
    model: Any, inputs: Mapping[str, torch.Tensor], rows: int, places: Sequence[int] | None = None
) -> torch.Tensor | Sequence[torch.Tensor] | None:
    """What the model makes of the pictures of `rows` rows, or of those at some `places`; None where rows and pictures do not
    correspond."""
    taken = inspect.signature(model.get_image_features).parameters
    pictures = {key: value for key, value in inputs.items() if key in taken}
    if not pictures or any(len(value) != rows for value in pictures.values()):
        return None
    if places is not None:
        pictures = {key: value[list(places)] for key, value in pictures.items()}
    device, dtype = model.device, model.dtype
    with torch.no_grad():
        output = model.get_image_features(
            **{key: value.to(device, dtype if value.is_floating_point() else None) for key, value in pictures.items()},
            return_dict=True,
        )
    pooled: torch.Tensor | Sequence[torch.Tensor] = output.pooler_output
    return pooled if len(pooled) == (rows if places is None else len(places)) else None


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of one number of pictures each, as tensors on the model's device.

    `tokens` are (n, width) each, padded on the left. `pictures` has a row for each distinct picture, and `picture_of` (n,),
    on the CPU, names each prompt's; where that is None, `pictures` is of all prompts, as the processor gave it.
    """

    tokens: dict[str, torch.Tensor]
    pictures: dict[str, torch.Tensor]
    picture_of: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens["input_ids"])

    @property
    def lengths(self) -> torch.Tensor:
        """How many tokens each prompt has, padding left out: (n,), on the CPU."""
        return self.tokens["attention_mask"].sum(dim=1).cpu()

    def first_of_each_picture(self) -> list[int]:
        """The first prompt of each distinct picture."""
        assert self.picture_of is not None
        return _first_of_each(self.picture_of.tolist())

    def inputs(self) -> dict[str, torch.Tensor]:
        """Everything for every prompt, as if each had a picture of its own."""
        if self.picture_of is None:
            return {**self.tokens, **self.pictures}
        return {**self.tokens, **{key: value[self.picture_of] for key, value in self.pictures.items()}}


class Reader:
    """Turns prompts into tensors by a model's processor. One thread at a time."""

    def __init__(self, processor: Any, label: str, device: torch.device, dtype: torch.dtype) -> None:
        self.processor, self.label, self.device, self.dtype = processor, label, device, dtype
        self._texts: dict[tuple[str, tuple[int, ...]], dict[str, torch.Tensor]] = {}
        self._row_a_picture = True

    def read(self, prompts: Sequence[Prompt]) -> Batch:
        """The prompts as a batch; where some share their only picture, it is prepared once.

        Raises:
            ConfigError: the processor refuses so many pictures.
        """
        places: dict[bytes, int] = {}
        picture_of = [places.setdefault(prompt.picture_key, len(places)) for prompt in prompts]
        if len(prompts[0].images) != 1 or len(places) == len(prompts) or not self._row_a_picture:
            return self._each_by_itself(prompts)
        firsts = [prompts[row] for row in _first_of_each(picture_of)]
        pictures = self._processed(firsts)
        tokens = {key: pictures.pop(key) for key in _BY_TOKEN if key in pictures}
        # Some processors cut a picture into parts of a row each, or write for each picture which tokens may look at it.
        of_pictures = set(getattr(self.processor.image_processor, "model_input_names", ()))
        if not pictures.keys() <= of_pictures or any(len(value) != len(firsts) for value in pictures.values()):
            self._row_a_picture = False
            return self._each_by_itself(prompts)
        if len(self._texts) > _KEPT_TEXTS:
            self._texts.clear()
        self._keep(firsts, tokens)
        new = list({_text(prompt): prompt for prompt in prompts if _text(prompt) not in self._texts}.values())
        if new:
            self._keep(new, self._processed(new))
        return Batch(self._padded(prompts), pictures, torch.tensor(picture_of))

    def _each_by_itself(self, prompts: Sequence[Prompt]) -> Batch:
        pictures = self._processed(prompts)
        return Batch({key: pictures.pop(key) for key in _BY_TOKEN if key in pictures}, pictures)

    def _keep(self, prompts: Sequence[Prompt], processed: Mapping[str, torch.Tensor]) -> None:
        tokens = {key: processed[key].cpu() for key in _BY_TOKEN if key in processed}
        for row, prompt in enumerate(prompts):
            is_token = tokens["attention_mask"][row].bool()
            self._texts[_text(prompt)] = {key: value[row][is_token] for key, value in tokens.items()}

    def _padded(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        rows = [self._texts[_text(prompt)] for prompt in prompts]
        padding = {"input_ids": self.processor.tokenizer.pad_token_id}
        return {
            key: pad_sequence(
                [row[key] for row in rows], batch_first=True, padding_value=padding.get(key, 0), padding_side="left"
            ).to(self.device)
            for key in rows[0]
        }

    def _processed(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        texts = self.processor.apply_chat_template(
            [conversation(prompt.text, len(prompt.images)) for prompt in prompts], add_generation_prompt=True
        )
        images = [list(prompt.images) for prompt in prompts] if prompts[0].images else None
        try:
            inputs = self.processor(
                text=texts,
                images=images,
                padding=True,
                padding_side="left",
                return_tensors="pt",
                # The chat template has written them.
                add_special_tokens=False,
            )
        except ValueError as error:
            raise ConfigError(
                f"The processor of the model {self.label!r} refuses prompts of {len(prompts[0].images)} images: "
                f"{first_line(error)}"
            ) from error
        inputs.pop("labels", None)  # PaliGemma's processor adds them.
        # The copy is for memory alignment: the processor's arrays are numpy's, and MKL promises equal results from run to run
        # only for the alignment of torch's own allocator.
        return {key: value.clone() for key, value in inputs.to(self.device, dtype=self.dtype).items()}


def _text(prompt: Prompt) -> tuple[str, tuple[int, ...]]:
    """What a prompt's tokens hang on: its text, and the size of its picture, which says how many tokens stand for it."""
    return prompt.text, prompt.images[0].shape


def _first_of_each(picture_of: Sequence[int]) -> list[int]:
    """The first row of each number from 0 on."""
    return [picture_of.index(picture) for picture in range(max(picture_of) + 1)]
