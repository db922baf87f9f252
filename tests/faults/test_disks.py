"""A disk that is full, and a folder that may only be read: one sentence, nothing lost, and the same command goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign
from tests.faults.disturbed import arguments
from tests.faults.stored import drafts, look


def _mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True, capture_output=True)


def _may_mount(folder: Path) -> bool:
    folder.mkdir()
    tried = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=False, capture_output=True)
    if tried.returncode == 0:
        subprocess.run(["umount", str(folder)], check=True)
    return tried.returncode == 0


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A folder on which the test may mount something; it is taken off again."""
    if os.geteuid() != 0 or not _may_mount(tmp_path / "tried"):
        pytest.skip("only root may mount a small disk or make a folder read-only for everybody")
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    yield folder
    while subprocess.run(["umount", str(folder)], check=False, capture_output=True).returncode == 0:
        pass


def _run(campaign: Campaign, data: Path, log: Path) -> tuple[int, str]:
    log.unlink(missing_ok=True)
    run = campaign.nursery.start(arguments(data), log)
    code = run.wait(300)
    return code, run.output()


def test_a_full_disk_is_said_in_one_sentence_and_the_same_command_goes_on(
    campaign: Campaign, mounted: Path, tmp_path: Path
) -> None:
    log = tmp_path / "run.log"
    whole: dict[object, str] = {}
    _mount("-t", "tmpfs", "-o", "size=200k", "tmpfs", str(mounted))
    for room in ("200k", "500k", "1100k"):
        _mount("-o", f"remount,size={room}", str(mounted))
        code, said = _run(campaign, mounted, log)
        assert code == 2, said
        assert "Traceback" not in said
        assert f"the disk that holds {mounted / 'store'} is full; free some space" in said.replace("\n", " ")
        stored = look(mounted / "store")
        assert stored.damaged == {}
        assert drafts(mounted / "store") == []
        assert whole.items() <= stored.digests.items() <= campaign.reference.digests.items()
        whole = {**stored.digests}
    assert whole
    _mount("-o", "remount,size=100m", str(mounted))
    code, said = _run(campaign, mounted, log)
    assert code == 0, said
    assert look(mounted / "store").digests == campaign.reference.digests


def test_a_folder_that_may_only_be_read_is_said_in_one_sentence(
    campaign: Campaign, finished: Path, mounted: Path, tmp_path: Path
) -> None:
    # `mounted` and `finished` are one folder.
    assert mounted == finished
    before = look(finished / "store")
    last = campaign.reference.order[-1]
    _mount("--bind", str(finished), str(finished))
    _mount("-o", "remount,ro,bind", str(finished))
    code, said = _run(campaign, finished, tmp_path / "run.log")
    assert code == 2, said
    assert "Traceback" not in said
    assert "no permission to use" in said
    assert "read-only file system" in said
    assert look(finished / "store") == before
    subprocess.run(["umount", str(finished)], check=True)
    code, said = _run(campaign, finished, tmp_path / "run.log")
    assert code == 0, said
    assert look(finished / "store").digests == campaign.reference.digests
    assert last in look(finished / "store").whole
