"""One seed for everything: each use of chance derives its own from the run's, by name.

A name, and not a position in a sequence of draws, so that a stage that is added, skipped or run elsewhere moves no
other stage's numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["derived_seed"]


def derived_seed(seed: int, *path: str | int) -> int:
    """A seed in 0..2**32-1 for the use that `path` names, e.g. ``derived_seed(0, "rollout", round, episode)``."""
    words = [
        part if isinstance(part, int) else int.from_bytes(hashlib.sha256(part.encode()).digest()[:4], "big")
        for part in path
    ]
    return int(np.random.SeedSequence(seed, spawn_key=tuple(words)).generate_state(1)[0])
