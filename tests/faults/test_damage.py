"""Flipped bytes: noticed before they are used, whichever artifact they are in."""

from __future__ import annotations

from pathlib import Path

import pytest

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
        _flip(_folder(root, last[kind]))
    assert len(look(root).digests) == len(campaign.reference.digests) - len(_FLIPPED)
    run = campaign.nursery.start(arguments(finished), finished / "mended.log")
    assert run.wait(300) == 0, run.output()
    assert "Traceback" not in run.output()
    # Nothing came out of the altered ones: everything is what an undisturbed round makes, and they are kept for a look.
    assert look(root).digests == campaign.reference.digests
    assert look(root).damaged == {}
    aside = {path.name.rsplit("-", 2)[0] for path in (root / "quarantine").iterdir()}
    assert aside == set(_FLIPPED)


@pytest.mark.parametrize("kind", ["metrics", "round"])
def test_flipped_bytes_are_not_reported(campaign: Campaign, finished: Path, kind: str) -> None:
    root = finished / "store"
    folder = _folder(root, next(name for name in look(root).whole if name.kind == kind))
    _flip(folder)
    run = campaign.nursery.start(["report", "--json", f"data_dir={finished}"], finished / "report.log")
    assert run.wait(120) == 2, run.output()
    assert f"the artifact {folder} is not what was stored" in run.output()
    assert "delete the folder and run again" in run.output()
    assert "Traceback" not in run.output()
