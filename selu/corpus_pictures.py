"""Pictures of the base model's own frozen corpus, for the critic to judge instructions on.

Practice shows a critic few things done: of some fourteen things that are picked up in a round of 400 episodes it learns to say
whether they were picked up. About all others it can answer questions. So it may judge instructions on pictures of the corpus,
too, by its own questions and before its first fine-tuning, and learn from these verdicts beside those on what was played.

What the corpus answers about a picture is not used. But the model was trained on these very pictures, so that its answers about
them are better than about rooms that it never saw.
"""

from __future__ import annotations

import hashlib

import datasets

from selu.records import Episode, Frame

__all__ = ["CORPUS", "corpus_pictures"]

CORPUS = "corpus"
"""In place of the policy that played an episode."""


def corpus_pictures(
    corpus: datasets.Dataset, kept_back: datasets.Dataset, count: int, seed: int
) -> tuple[list[Episode], list[Frame]]:
    """`count` different pictures of the corpus (all, if it has fewer), in seeded order: each the only frame of an episode.

    Such an episode has no step and no instruction of its own. Of a row with several pictures the first counts; a picture that is
    in `kept_back` (what a guard asks about) is left out.
    """
    hidden = {name for name, _, _ in _pictures(kept_back)}
    pictures = {name: (scene, image) for name, scene, image in _pictures(corpus) if name not in hidden}
    drawn = sorted(pictures, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())[:count]
    episodes = [
        Episode(
            episode_id=name,
            task_id="",
            scene=pictures[name][0],
            instruction="",
            seed=seed,
            policy=CORPUS,
            length=0,
            finish_reason="step_limit",
        )
        for name in drawn
    ]
    return episodes, [Frame(episode_id=name, frame_index=0, image=pictures[name][1]) for name in drawn]


def _pictures(corpus: datasets.Dataset) -> list[tuple[str, str, bytes]]:
    """Name, scene and encoded picture of each row."""
    undecoded = corpus.cast_column("images", datasets.List(datasets.Image(decode=False)))
    return [
        (hashlib.sha256(images[0]["bytes"]).hexdigest()[:16], scene, images[0]["bytes"])
        for images, scene in zip(undecoded["images"], undecoded["scene"], strict=True)
    ]
