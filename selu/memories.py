"""Memories: pictures of the base model's own frozen corpus, as trajectories of no step that nobody told anything.

Practice shows a critic few things done: a round of 400 episodes has some fourteen different things picked up. What it knows of
other things it can answer questions about, and so it judges instructions on pictures that it has seen before any learning, and
learns from these verdicts like from any others of its own. What the corpus says of a picture is not looked at.
"""

from __future__ import annotations

import hashlib

import datasets

from selu.records import Episode, Frame

__all__ = ["MEMORY", "memories"]

MEMORY = "memory"
"""In place of the policy that played an episode, and the source of the rows that come of it."""


def memories(corpus: datasets.Dataset, count: int, seed: int) -> tuple[list[Episode], list[Frame]]:
    """`count` different pictures of the corpus (all, if it has fewer), one frame of one episode each, in seeded order."""
    undecoded = corpus.cast_column("images", datasets.List(datasets.Image(decode=False)))
    pictures: dict[str, tuple[str, bytes]] = {}
    for images, scene in zip(undecoded["images"], undecoded["scene"], strict=True):
        image = images[0]["bytes"]
        pictures[hashlib.sha256(image).hexdigest()[:16]] = scene, image
    drawn = sorted(pictures, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())[:count]
    episodes = [
        Episode(
            episode_id=name,
            task_id="",
            scene=pictures[name][0],
            instruction="",
            seed=seed,
            policy=MEMORY,
            length=0,
            finish_reason="done",
        )
        for name in drawn
    ]
    return episodes, [Frame(episode_id=name, frame_index=0, image=pictures[name][1]) for name in drawn]
