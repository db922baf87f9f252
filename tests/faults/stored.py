"""What lies in a store, seen without the store's own code: whole artifacts with their bytes hashed again, drafts, damage.

A check that used `selu.store` would believe what it is there to doubt, and opening a store removes drafts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Name", "Seen", "Stored", "drafts", "look", "names"]


class Name(NamedTuple):
    """What an artifact is called: kind and key; ground truth's kinds begin with `oracle`."""

    kind: str
    key: str


@dataclass(frozen=True)
class Seen:
    """A whole artifact."""

    digest: str
    inode: int
    """Of its manifest: made again, it is another."""
    provenance: dict[str, Any]
    created: str


@dataclass(frozen=True)
class Stored:
    """All that a store shows."""

    whole: dict[Name, Seen]
    damaged: dict[Name, str]
    """Visible artifacts that are not what their manifest says, with the reason."""

    @property
    def digests(self) -> dict[Name, str]:
        """Digests of everything that is the same in each run: all but the records of rounds, which hold times."""
        return {name: seen.digest for name, seen in self.whole.items() if name.kind != "round"}


def names(root: Path) -> set[Name]:
    """What is visible, whole or not: a few scans of folders, quick enough to be called a hundred times a second."""
    return {Name(folder.parent.parent.name, folder.name) for folder in _folders(root)}


def drafts(root: Path) -> list[str]:
    """Names of what is being written, or was left unfinished."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(os.listdir(root / "tmp"))
    return []


def look(root: Path) -> Stored:
    """Hash everything that is visible."""
    whole: dict[Name, Seen] = {}
    damaged: dict[Name, str] = {}
    for folder in _folders(root):
        name = Name(folder.parent.parent.name, folder.name)
        try:
            whole[name] = _read(folder)
        except (OSError, ValueError, KeyError) as error:
            damaged[name] = f"{type(error).__name__}: {error}"
    return Stored(whole, damaged)


def _read(folder: Path) -> Seen:
    manifest_file = folder / "manifest.json"
    manifest = json.loads(manifest_file.read_bytes())
    listed = {file["name"]: file["sha256"] for file in manifest["files"]}
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path != manifest_file
    }
    if found != listed:
        raise ValueError(f"files {sorted(found.items() ^ listed.items())} differ from the manifest")
    canonical = json.dumps(
        [[file["name"], file["sha256"]] for file in manifest["files"]], separators=(",", ":"), ensure_ascii=False
    )
    if hashlib.sha256(canonical.encode()).hexdigest() != manifest["digest"]:
        raise ValueError("its digest is not that of its files")
    if (manifest["kind"], manifest["key"]) != (folder.parent.parent.name, folder.name):
        raise ValueError("it lies where another belongs")
    return Seen(manifest["digest"], manifest_file.stat().st_ino, manifest["provenance"], manifest["created"])


def _folders(root: Path) -> Iterator[Path]:
    for base in (root, root / "oracle"):
        for kind in _children(base):
            if kind.name not in ("tmp", "quarantine", "oracle") or base != root:
                for prefix in _children(kind):
                    yield from _children(prefix)
    # A kind of ground truth may be called `oracle` itself, which is then oracle/oracle/..


def _children(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []
