"""Draws the frozen general probe; run once, its product is shipped.

Frames of random states of the learning and transfer scenes, one question each, drawn as the pretraining corpus draws
them. Every kind has as many rows, every short answer within a kind too, and the scenes are used as evenly as that
allows. Questions whose answer is a list are left out: an exact match would measure the order of words.

    python -m selu.base_model.make_general_probe
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from selu.base_model.corpus import SEEN, FrameSet, Turn, question_turns, render_frames
from selu.config import scenes_of_split
from selu.frames import encode_picture
from selu.general_probe import GENERAL_FILE, GeneralQuestion
from selu.store import write_table

__all__ = ["general_probe", "main"]

_POLAR: Mapping[str, int] = {"yes": 20, "no": 20}
_ANY = ""
"""Any answer but those named; the rarest is taken first."""
QUOTAS: Mapping[str, Mapping[str, int]] = {
    "held": {"nothing": 10, _ANY: 30},
    "holding": _POLAR,
    "view": _POLAR,
    "where": {"left": 10, "centre": 10, "right": 10, "not in view": 10},
    "open": _POLAR,
    "on": _POLAR,
    "broken": _POLAR,
    "sliced": _POLAR,
    "inside": _POLAR,
    "support": {_ANY: 40},
}
"""Kind -> answer -> rows."""
FRAMES, SEED = 4_000, 20_241_006
"""4,000 frames hold the rarest answer (sliced, yes) often enough; a tenth of them is shipped, 1.6 MB."""


def general_probe(frames: FrameSet, seed: int) -> list[GeneralQuestion]:
    """400 questions about 400 of the frames.

    Raises:
        ValueError: the frames hold an answer too rarely.
    """
    rng = np.random.default_rng(seed)
    absent = (frames.pixels >= SEEN).mean(0) + 0.002
    pools: dict[tuple[str, str], list[tuple[int, Turn]]] = {
        (kind, answer): [] for kind, answers in QUOTAS.items() for answer in answers
    }
    for i in rng.permutation(len(frames)).tolist():
        for turn in question_turns(frames, i, rng, absent, 24):
            named = (turn.kind, turn.answer)
            pool = pools.get(named if named in pools else (turn.kind, _ANY))
            if pool is not None:
                pool.append((i, turn))
    chosen: dict[tuple[str, str], list[tuple[int, Turn]]] = {}
    taken: set[int] = set()
    scenes: Counter[int] = Counter()
    # Rare answers choose first: common ones find other frames.
    for (kind, answer), pool in sorted(pools.items(), key=lambda item: (len(item[1]), item[0])):
        asked: Counter[tuple[str, str]] = Counter()
        rows = chosen[kind, answer] = []
        while len(rows) < QUOTAS[kind][answer]:
            free = [row for row in pool if row[0] not in taken]
            if not free:
                raise ValueError(f"{len(frames)} frames give only {len(rows)} rows of {kind}: {answer or 'any'}")
            i, turn = min(
                free,
                key=lambda row: (
                    asked["answer", row[1].answer] if answer == _ANY else 0,
                    scenes[int(frames.scene[row[0]])],
                    asked["question", row[1].question],
                ),
            )
            asked.update([("answer", turn.answer), ("question", turn.question)])
            scenes[int(frames.scene[i])] += 1
            taken.add(i)
            rows.append((i, turn))
    return [
        GeneralQuestion(
            image=encode_picture(frames.rgb[i]),
            question=turn.question,
            answer=turn.answer,
            kind=turn.kind,
            scene=f"FloorPlan{int(frames.scene[i])}",
        )
        for i, turn in _in_turn([_in_turn([chosen[kind, answer] for answer in QUOTAS[kind]]) for kind in QUOTAS])
    ]


def _in_turn(lists: Sequence[Sequence[tuple[int, Turn]]]) -> list[tuple[int, Turn]]:
    """Merged so that every beginning holds about the same share of each list."""
    places = [
        ((number + 0.5) / len(rows), which, row) for which, rows in enumerate(lists) for number, row in enumerate(rows)
    ]
    return [row for _, _, row in sorted(places, key=lambda place: place[:2])]


def main() -> None:
    """Write the probe."""
    scenes = [*scenes_of_split("learning"), *scenes_of_split("transfer")]
    rows = general_probe(render_frames(scenes, FRAMES, SEED), SEED)
    write_table(GENERAL_FILE, rows, GeneralQuestion)
    print(
        f"{len(rows)} questions, {len({row.scene for row in rows})} scenes, {GENERAL_FILE.stat().st_size / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
