"""Flipped bytes: noticed before they are used, whichever artifact they are in."""

from __future__ import annotations

from pathlib import Path

from tests.faults.campaign import Campaign
from tests.faults.disturbed import arguments
from tests.faults.stored import Name, look


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


def _folder(root: Path, name: Name) -> Path:
    return (root / "oracle" if name.kind.startswith("oracle") else root) / name.kind / name.key[:2] / name.key


def test_flipped_bytes_are_never_used_and_the_same_command_makes_them_again(campaign: Campaign, finished: Path) -> None:
    root = finished / "store"
    # The last of each kind: what made it has others of the kind before it.
    last = {name.kind: name for name in campaign.reference.order}
    for kind in _FLIPPED:
        base = root / "oracle" if kind.startswith("oracle") else root
        _flip(base / kind / last[kind].key[:2] / last[kind].key)
    assert len(look(root).digests) == len(campaign.reference.digests) - len(_FLIPPED)
    run = campaign.nursery.start(arguments(finished), finished / "mended.log")
    assert run.wait(300) == 0, run.output()
    assert "Traceback" not in run.output()
    # Nothing came out of the altered ones: everything is what an undisturbed round makes, and they are kept for a look.
    assert look(root).digests == campaign.reference.digests
    assert look(root).damaged == {}
    aside = {path.name.rsplit("-", 2)[0] for path in (root / "quarantine").iterdir()}
    assert aside == set(_FLIPPED)
