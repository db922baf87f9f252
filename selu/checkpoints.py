"""Folders in which a long computation keeps what it needs to go on after it was killed; one process at a time.

Layout: ``<root>/<key>/``, with a file ``lock`` that the process at work holds locked. The kernel lets go of the lock
when the process ends, however it ends and on whatever machine of a shared volume, so that nobody has to tell whether a
lock was left behind.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

__all__ = ["checkpoint_folder", "remove_checkpoints"]

logger = logging.getLogger(__name__)

_LOCK = "lock"
# As with drafts in the store: nothing here trains for a week without a single checkpoint.
_ABANDONED_AFTER = 7 * 24 * 3600.0


@contextmanager
def checkpoint_folder(root: Path, key: str) -> Iterator[Path | None]:
    """The folder of `key`, for this process alone until the block ends; None if another one is at work in it or it
    cannot be locked.

    It is deleted when the block ends well and stays, for the next process that asks for it, when it raises. Folders of other
    keys that nobody works in and nobody has touched for a week are deleted.
    """
    _remove_abandoned(root, but=key)
    folder = root / key
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as mine:
        yield folder if mine else None
        if mine:
            shutil.rmtree(folder, ignore_errors=True)


def remove_checkpoints(root: Path, key: str) -> None:
    """Delete what is left under a key whose result exists, unless a process is at work there."""
    with _locked(root / key) as mine:
        if mine:
            shutil.rmtree(root / key, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether this process holds the folder's lock until the block ends; without a folder it does not."""
    with ExitStack() as opened:
        try:
            file = opened.enter_context((folder / _LOCK).open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The lock of a file that was deleted meanwhile keeps nobody out.
            mine = os.path.samestat((folder / _LOCK).stat(), os.fstat(file.fileno()))
        except (BlockingIOError, FileNotFoundError):
            # Its owner is at work, or is deleting it at this moment.
            mine = False
        except OSError as error:
            # Some network file systems have no locks.
            logger.warning("%s cannot be locked (%s); no checkpoints are kept there", folder, error)
            mine = False
        yield mine


def _remove_abandoned(root: Path, *, but: str) -> None:
    with suppress(OSError):
        for folder in root.iterdir():
            newest = max(path.lstat().st_mtime for path in [folder, *folder.rglob("*")])
            if folder.name != but and time.time() - newest > _ABANDONED_AFTER:
                with _locked(folder) as mine:
                    if mine:
                        shutil.rmtree(folder, ignore_errors=True)
