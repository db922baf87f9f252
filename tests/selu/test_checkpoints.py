"""Folders of checkpoints: one process at a time, kept for the next when one is killed, gone when all is done."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from selu.checkpoints import checkpoint_folder, remove_checkpoints


def leave_a_checkpoint(root: Path) -> None:
    with checkpoint_folder(root, "key") as folder:
        assert folder is not None
        (folder / "step-40").mkdir()
        raise RuntimeError


def test_what_was_left_is_found_and_what_is_done_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "all" / "key"
    with pytest.raises(RuntimeError):
        leave_a_checkpoint(tmp_path / "all")
    with checkpoint_folder(tmp_path / "all", "key") as again:
        assert again == folder
        assert (tmp_path / "all" / "key" / "step-40").is_dir()
    assert not list((tmp_path / "all").iterdir())


def test_a_second_process_neither_reads_nor_removes_them(tmp_path: Path) -> None:
    with checkpoint_folder(tmp_path, "key") as first:
        assert first is not None
        (first / "step-40").mkdir()
        with checkpoint_folder(tmp_path, "key") as second:
            assert second is None
        with checkpoint_folder(tmp_path, "other") as other:
            assert other is not None
        assert (first / "step-40").is_dir()


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOTSUP])
def test_where_no_lock_can_be_had_no_checkpoints_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: int
) -> None:
    """As on some network file systems: nobody could tell whether another process is at work there."""

    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with checkpoint_folder(tmp_path, "key") as folder:
        assert folder is None
    assert caplog.text.count("cannot be locked") == 1


def test_what_a_finished_computation_left_is_removed_unless_somebody_works_there(tmp_path: Path) -> None:
    remove_checkpoints(tmp_path, "never begun")
    with checkpoint_folder(tmp_path, "key") as folder:
        assert folder is not None
        (folder / "step-40").mkdir()
        remove_checkpoints(tmp_path, "key")
        assert (folder / "step-40").is_dir()
    with pytest.raises(RuntimeError):
        leave_a_checkpoint(tmp_path)
    remove_checkpoints(tmp_path, "key")
    assert not list(tmp_path.iterdir())


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with checkpoint_folder(tmp_path, "key"):
            os._exit(9)
    os.waitpid(child, 0)
    with checkpoint_folder(tmp_path, "key") as folder:
        assert folder is not None


def test_folders_that_nobody_wants_any_more_go_in_time(tmp_path: Path) -> None:
    long_ago = time.time() - 8 * 24 * 3600
    with checkpoint_folder(tmp_path, "at work") as busy:
        assert busy is not None
        for name in ("forgotten", "fresh"):
            (tmp_path / name).mkdir()
        for path in (busy / "lock", busy, tmp_path / "forgotten"):
            os.utime(path, (long_ago, long_ago))
        with checkpoint_folder(tmp_path, "key"):
            assert {path.name for path in tmp_path.iterdir()} == {"at work", "fresh", "key"}
