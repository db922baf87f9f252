"""The direct verdict: the critic is asked in one breath whether an instruction was done.

It is what fine-tuning changes and what evaluation compares before and after. Blinds show what a verdict owes to the
pictures: a judge that keeps its score on blank, shuffled or no pictures reads the instruction alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from selu.frames import Picture
from selu.models.base import Prompt, VisionLanguageModel
from selu.prompting import verdict_prompt

__all__ = ["CHOICES", "Blind", "Item", "blinded", "direct_verdicts"]

CHOICES = ("yes", "no")

Item = tuple[tuple[Picture, ...], str]
"""Frames, each (H, W, 3) uint8 and oldest first, and the instruction to judge."""

Blind = Literal["blank", "no_image", "shuffled"]


def direct_verdicts(items: Sequence[Item], critic: VisionLanguageModel) -> list[tuple[Literal["yes", "no"], float]]:
    """For each item the likelier of `yes` and `no`, and its probability (0.5..1) when only these two may be said."""
    if not items:
        return []
    style = critic.prompt_style
    prompts = [Prompt(images=pictures, text=verdict_prompt(text, style)) for pictures, text in items]
    scores = critic.score(prompts, CHOICES)
    best = scores.argmax(axis=1)
    return [
        ("yes" if column == 0 else "no", float(np.exp(row[column]))) for row, column in zip(scores, best, strict=True)
    ]


def blinded(items: Sequence[Item], blind: Blind, seed: int) -> list[Item]:
    """The same questions without what should answer them.

    `blank` paints every frame grey, `no_image` leaves only the instruction, `shuffled` gives each item the frames of
    another one (no item keeps its own as long as there are two).
    """
    if blind == "blank":
        return [(tuple(np.full_like(picture, 128) for picture in pictures), text) for pictures, text in items]
    if blind == "no_image":
        return [((), text) for _, text in items]
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(len(items))
    donors = {int(item): int(order[(place + 1) % len(items)]) for place, item in enumerate(order)}
    return [(items[donors[index]][0], text) for index, (_, text) in enumerate(items)]
