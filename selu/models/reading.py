"""Prompts as a model takes them: each picture prepared once, and each text turned into tokens once.

The critic asks many questions about a frame, and the same questions about many frames. With a small model a processor that
prepares the picture anew for each of them takes longer than the model needs for the answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from selu.errors import ConfigError
from selu.models.base import Prompt

__all__ = ["Batch", "Reader", "conversation", "picture_key"]

# What a processor gives for each token; everything else is of pictures.
_BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")

# A question's tokens are kept by its text and the size of its picture, on which it hangs how many tokens stand for that.
_KEPT_TEXTS = 8192


def conversation(text: str, images: int) -> list[dict[str, Any]]:
    """A user's turn for a chat template: pictures, then text."""
    return [{"role": "user", "content": [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]}]


def picture_key(prompt: Prompt) -> bytes:
    """Equal for prompts of equal pictures."""
    digest = hashlib.sha256()
    for image in prompt.images:
        digest.update(str(image.shape).encode())
        digest.update(image.tobytes())
    return digest.digest()


@dataclass(frozen=True)
class Batch:
    """Prompts of one number of pictures each, as tensors.

    `tokens` are (n, width) each, padded on the left. `pictures` has a row for each distinct picture, and `which` of each
    prompt the row of its own; where `which` is None, `pictures` is of all prompts, as the processor gave it.
    """

    tokens: dict[str, torch.Tensor]
    pictures: dict[str, torch.Tensor]
    which: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens["input_ids"])

    @property
    def token_count(self) -> int:
        """Of all prompts together, padding left out."""
        return int(self.tokens["attention_mask"].sum())

    def one_of_each_picture(self) -> list[int]:
        """The first prompt of each distinct picture."""
        assert self.which is not None
        which = self.which.tolist()
        return [which.index(row) for row in range(max(which) + 1)]

    def inputs(self) -> dict[str, torch.Tensor]:
        """Everything for every prompt, as if each picture were its own."""
        pictures = self.pictures if self.which is None else {k: v[self.which] for k, v in self.pictures.items()}
        return {**self.tokens, **pictures}


class Reader:
    """Turns prompts into tensors by a model's processor."""

    def __init__(self, processor: Any, label: str, device: torch.device, dtype: torch.dtype) -> None:
        self.processor, self.label, self.device, self.dtype = processor, label, device, dtype
        self._texts: dict[tuple[str, tuple[int, ...]], dict[str, torch.Tensor]] = {}

    def read(self, prompts: Sequence[Prompt]) -> Batch:
        """Raises ConfigError if the processor refuses so many pictures."""
        places: dict[bytes, int] = {}
        which = [places.setdefault(picture_key(prompt), len(places)) for prompt in prompts]
        whole = len(prompts[0].images) != 1 or len(places) == len(prompts)
        firsts = prompts if whole else [prompts[which.index(row)] for row in range(len(places))]
        made = self._processed(firsts)
        tokens = {key: made.pop(key) for key in _BY_TOKEN if key in made}
        if whole:
            return Batch(tokens, made)
        if any(len(value) != len(firsts) for value in made.values()):
            # Parts of pictures, a row each, which only the processor can count.
            return self._all_of(prompts)
        if len(self._texts) > _KEPT_TEXTS:
            self._texts.clear()
        self._keep(firsts, tokens)
        new = list({_text(prompt): prompt for prompt in prompts if _text(prompt) not in self._texts}.values())
        if new:
            self._keep(new, self._processed(new))
        rows = [self._texts[_text(prompt)] for prompt in prompts]
        padding = {"input_ids": self.processor.tokenizer.pad_token_id}
        together = {
            key: pad_sequence(
                [row[key] for row in rows], batch_first=True, padding_value=padding.get(key, 0), padding_side="left"
            )
            for key in tokens
        }
        return Batch(together, made, torch.tensor(which, device=self.device))

    def _all_of(self, prompts: Sequence[Prompt]) -> Batch:
        made = self._processed(prompts)
        return Batch({key: made.pop(key) for key in _BY_TOKEN if key in made}, made)

    def _keep(self, prompts: Sequence[Prompt], made: Mapping[str, torch.Tensor]) -> None:
        there = made["attention_mask"].bool()
        for row, prompt in enumerate(prompts):
            self._texts[_text(prompt)] = {key: made[key][row][there[row]] for key in _BY_TOKEN if key in made}

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
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise ConfigError(
                f"The processor of the model {self.label!r} refuses prompts of {len(prompts[0].images)} images: {reason}."
            ) from error
        inputs.pop("labels", None)  # PaliGemma's processor adds them.
        # The copy is for memory alignment: the processor's arrays are numpy's, and MKL promises equal results from run to run
        # only for the alignment of torch's own allocator.
        return {key: value.clone() for key, value in inputs.to(self.device, dtype=self.dtype).items()}


def _text(prompt: Prompt) -> tuple[str, tuple[int, ...]]:
    return prompt.text, prompt.images[0].shape
