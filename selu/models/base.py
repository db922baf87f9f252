"""What the pipeline asks of a vision-language model, whichever engine runs it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from selu.prompting import PromptStyle

__all__ = ["Prompt", "Reply", "VisionLanguageModel"]


@dataclass(frozen=True, eq=False)
class Prompt:
    """One user turn: pictures first, then text."""

    images: tuple[NDArray[np.uint8], ...]
    """RGB frames, each (H, W, 3) uint8."""
    text: str

    @cached_property
    def picture_key(self) -> bytes:
        """Equal for prompts of equal pictures."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(str(image.shape).encode())
            digest.update(image.tobytes())
        return digest.digest()


@dataclass(frozen=True)
class Reply:
    """What the model wrote to one prompt."""

    text: str
    log_probability: float
    """Sum over the tokens written, the end of the turn included if it was reached, under the model at temperature 1."""

    @property
    def confidence(self) -> float:
        """Probability of exactly this reply under the model, 0..1."""
        return math.exp(self.log_probability)


class VisionLanguageModel(Protocol):
    """A model that answers prompts in batches. Results do not depend on the batch or order that a prompt came in,
    beyond the rounding of floating point arithmetic."""

    @property
    def revision(self) -> str:
        """Content hash of base weights and adapter: equal revisions give equal answers."""
        ...

    prompt_style: PromptStyle
    """Which set of prompts the model reads."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:
        """Answer each prompt with at most `max_new_tokens` tokens.

        Temperature 0 is greedy. Above it, row i draws from a generator of its own, seeded with ``seeds[i]``.

        Raises:
            ValueError: `temperature` > 0 without one seed a prompt.
        """
        ...

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> NDArray[np.float64]:
        """Return (len(prompts), len(choices)) log-probabilities of `choices` as replies, normalised over the choices."""
        ...

    def with_adapter(self, path: Path | None) -> VisionLanguageModel:
        """Return the same base weights under another LoRA adapter (None: under none), without loading them again."""
        ...
