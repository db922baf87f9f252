"""What tells one program of the user's own from another: the bytes of its files, not what they are called."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from pathlib import Path

__all__ = ["program_digest"]


def program_digest(command: str) -> str:
    """sha256 over every file that a word of a command line names: its program, and a script or build that it is given.

    Unity's own settings, which stand beside its small launcher, count too. Words that are no file count as they are. Where
    the files lie does not count, and neither does what they read or import in turn.
    """
    digest = hashlib.sha256()
    for place, word in enumerate(shlex.split(command)):
        path = Path((shutil.which(word) if place == 0 else None) or word)
        if not path.is_file():
            digest.update(hashlib.sha256(word.encode()).digest())
            continue
        for file in (path, path.with_name(path.stem + "_Data") / "boot.config"):
            if file.is_file():
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
