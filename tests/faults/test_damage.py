"""Flipped bytes: noticed before they are used, whichever artifact they are in; the message's own way out leads out."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.faults.campaign import Campaign
from tests.faults.disturbed import arguments
from tests.faults.stored import look


def _flip(folder: Path) -> None:
    """One bit of a data file, in its middle: size and names stay."""
    file = max((path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"), key=_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def _size(path: Path) -> int:
    return path.stat().st_size


_FLIPPED = ("oracle_tasks", "episodes", "oracle", "judgements", "critic_dataset", "adapter", "guard", "metrics")
"""What a stage reads, what fine-tuning reads, what a model is loaded with, what decides, what the report shows."""


def test_flipped_bytes_are_never_used_and_are_mended_as_the_message_says(campaign: Campaign, finished: Path) -> None:
    root = finished / "store"
    # The last of each kind: what made it has others of the kind before it.
    last = {name.kind: name for name in campaign.reference.order}
    left = set()
    for kind in _FLIPPED:
        base = root / "oracle" if kind.startswith("oracle") else root
        folder = base / kind / last[kind].key[:2] / last[kind].key
        _flip(folder)
        left.add(folder)
    whole = look(root).digests
    assert len(whole) == len(campaign.reference.digests) - len(_FLIPPED)
    while True:
        run = campaign.nursery.start(arguments(finished), finished / f"{len(left)}.log")
        code = run.wait(300)
        if code == 0:
            break
        assert code == 2, run.output()
        assert "Traceback" not in run.output()
        said = [line for line in run.output().splitlines() if "the artifact" in line]
        assert len(said) == 1, run.output()
        told = re.search(r"the artifact (\S+) is not what was stored: .* is altered; delete the folder", said[0])
        assert told is not None, said
        # Nothing came out of it: what is there is what was there, or what an undisturbed round makes.
        now = look(root).digests
        assert whole.items() <= now.items() <= campaign.reference.digests.items()
        shutil.rmtree(told[1])
        left.remove(Path(told[1]))
    assert left == set()
    assert look(root).digests == campaign.reference.digests
    assert look(root).damaged == {}
