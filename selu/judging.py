"""Judges that need no questions of the critic's own: its direct verdict, and what other methods make of that.

The direct verdict: the critic is asked in one breath whether an instruction was done. It is
what fine-tuning changes and what evaluation compares before and after. Blinds show what a verdict owes to the
pictures: a judge that keeps its score on blank, shuffled or no pictures reads the instruction alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from selu.frames import Picture
from selu.models.base import Prompt, VisionLanguageModel
from selu.prompting import verdict_prompt
from selu.records import Judgement

__all__ = ["CHOICES", "Blind", "Item", "Said", "blinded", "direct_verdicts", "majority_verdicts", "refined_verdict"]

CHOICES = ("yes", "no")

Item = tuple[tuple[Picture, ...], str]
"""Frames, each (H, W, 3) uint8 and oldest first, and the instruction to judge."""

Blind = Literal["blank", "no_image", "shuffled"]

Said = tuple[Literal["yes", "no"], float]
"""A verdict and how sure it is, 0..1."""


def _scores(items: Sequence[Item], critic: VisionLanguageModel) -> NDArray[np.float64]:
    """(len(items), 2) log-probabilities of `yes` and `no`."""
    style = critic.prompt_style
    prompts = [Prompt(images=pictures, text=verdict_prompt(text, style)) for pictures, text in items]
    return critic.score(prompts, CHOICES)


def direct_verdicts(items: Sequence[Item], critic: VisionLanguageModel) -> list[Said]:
    """For each item the likelier of `yes` and `no`, and its probability (0.5..1) when only these two may be said."""
    if not items:
        return []
    scores = _scores(items, critic)
    best = scores.argmax(axis=1)
    return [
        ("yes" if column == 0 else "no", float(np.exp(row[column]))) for row, column in zip(scores, best, strict=True)
    ]


def majority_verdicts(
    items: Sequence[Item], seeds: Sequence[int], votes: int, critic: VisionLanguageModel
) -> list[Said]:
    """Self-consistency (Wang et al. 2022): the direct verdict sampled `votes` times, the majority, and its share.

    Item i draws at temperature 1 from a generator seeded with ``seeds[i]``. A verdict is one of two words, so its
    samples are drawn from the probabilities of the two: one reading in place of `votes` of them, with the same votes.
    An even split is a `no`: a label that says "done" needs a majority.
    """
    if not items:
        return []
    said: list[Said] = []
    for row, seed in zip(_scores(items, critic), seeds, strict=True):
        yes = int((np.random.default_rng(seed).random(votes) < np.exp(row[0])).sum())
        said.append(("yes", yes / votes) if 2 * yes > votes else ("no", 1 - yes / votes))
    return said


def refined_verdict(first: Said, feedback: Judgement, confidence: float) -> Said:
    """Self-Refine (Madaan et al. 2023): the first verdict, or what the feedback says if it contradicts and is surer.

    `confidence` is the feedback's, 0..1. Feedback that says `unsure` revises nothing.
    """
    if feedback == "unsure" or feedback == first[0] or confidence <= first[1]:
        return first
    return feedback, confidence


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
