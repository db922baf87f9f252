"""What lies in a store, whether it is still what was stored, and what no kept round needs.

A round needs whatever its record names, and whatever that was made of, back to the first rollout: with it, every figure
can be made again. Nothing is deleted that was made or found later than the caller says, because a run that is still at work
has no record yet. Rounds whose records cannot be read here are kept.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from selu.errors import ArtifactError
from selu.rounds import ROUND_STAGES, Round, StageName, finished_rounds, kept_with
from selu.store import AnyRef, ArtifactRef, Manifest, OracleRef, Store, manifests

__all__ = ["KindOfArtifact", "Pruned", "altered", "forget_from", "prunable", "prune", "reference", "survey"]

_Name = tuple[str, str]
"""Kind and key."""


@dataclass(frozen=True)
class KindOfArtifact:
    """All artifacts of one kind."""

    kind: str
    count: int
    bytes: int
    newest: str
    """ISO 8601, UTC."""


def survey(store: Store) -> list[KindOfArtifact]:
    """What there is, by kind, ground truth included."""
    return _by_kind(manifests(store.root))


def _by_kind(some: Iterable[Manifest]) -> list[KindOfArtifact]:
    found: dict[str, list[Manifest]] = {}
    for manifest in some:
        found.setdefault(manifest.kind, []).append(manifest)
    return [
        KindOfArtifact(kind, len(those), sum(one.size for one in those), max(one.created for one in those))
        for kind, those in sorted(found.items())
    ]


def altered(store: Store) -> Iterator[tuple[AnyRef, str]]:
    """Every artifact, hashed again: what is wrong with it, or an empty text; damaged ones are told of, too."""
    for ref in store.everything():
        try:
            store.verify(ref)
        except ArtifactError as error:
            yield ref, str(error)
        else:
            yield ref, ""


def prunable(store: Store, kept: Iterable[Round], older_than: timedelta) -> list[Manifest]:
    """Artifacts that none of the kept rounds needs and that nobody made or found for so long, by kind and key."""
    known = {(manifest.kind, manifest.key): manifest for manifest in manifests(store.root)}
    recorded = {(item.run, item.round, item.finished) for item in kept}
    readable = {(item.run, item.round, item.finished) for item in finished_rounds(store)}
    roots: list[_Name] = []
    for name, manifest in known.items():
        if manifest.kind == "round":
            told = manifest.provenance
            which = (told.get("run"), told.get("round"), told.get("finished"))
            # A record that cannot be read here (of another version, of a world that is not installed) is not ours to drop.
            if which in recorded or which not in readable:
                roots += [name, *_names(json.loads((store.path(reference(manifest)) / "round.json").read_bytes()))]
    needed = _reachable(roots, known)
    before = datetime.now(UTC) - older_than
    found = []
    for name, manifest in sorted(known.items()):
        with contextlib.suppress(ArtifactError):  # gone meanwhile
            if name not in needed and store.used(reference(manifest)) <= before:
                found.append(manifest)
    return found


@dataclass(frozen=True)
class Pruned:
    """What no kept round needs, by kind, and how many rounds are kept."""

    kinds: list[KindOfArtifact]
    rounds: int
    deleted: bool

    def __str__(self) -> str:
        count, size = sum(kind.count for kind in self.kinds), sum(kind.bytes for kind in self.kinds)
        told = "deleted" if self.deleted else "would be deleted"
        return f"{count} artifacts, {size / 1e6:.1f} MB, {told}; {self.rounds} rounds are kept"


def prune(store: Store, keep: int | None, older_than: timedelta, *, delete: bool) -> Pruned:
    """Delete what none of the newest rounds needs (`keep` of them, or all), or only say what that would be."""
    before = datetime.now(UTC) - older_than
    kept = kept_with(store, keep)
    doomed = prunable(store, kept, older_than)
    if delete:
        for ref in map(reference, doomed):
            # Looked at again: a run may have found it meanwhile, or another one have deleted it.
            with contextlib.suppress(ArtifactError):
                if store.used(ref) <= before:
                    store.remove(ref)
    return Pruned(_by_kind(doomed), len({(item.run, item.finished) for item in kept}), delete)


def forget_from(store: Store, finished: Round, stage: StageName) -> int:
    """Move what a stage of a round made, and all after it, out of the store, so that it is made again; how many.

    Raises:
        TerminalError: one may not be moved.
    """
    known: dict[str, list[Manifest]] = {}
    for manifest in manifests(store.root):
        known.setdefault(manifest.key, []).append(manifest)
    forgotten = 0
    names = list(ROUND_STAGES)
    if stage == ROUND_STAGES[0]:
        store.set_aside(finished.tasks)
    for record in finished.stages:
        if names.index(record.name) >= names.index(stage):
            for ref in record.artifacts:
                # The truth about it lies beside it, under the same key.
                for manifest in known.pop(ref.key, []):
                    store.set_aside(reference(manifest))
                    forgotten += 1
    return forgotten


def reference(manifest: Manifest) -> AnyRef:
    """What refers to an artifact."""
    kind = OracleRef if manifest.kind.startswith("oracle") else ArtifactRef
    return kind(kind=manifest.kind, key=manifest.key, digest=manifest.digest)


def _names(value: Any) -> Iterator[_Name]:
    """Kinds and keys of all references in a JSON value."""
    if isinstance(value, Mapping):
        if {"kind", "key", "digest"} <= value.keys():
            yield value["kind"], value["key"]
        for part in value.values():
            yield from _names(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _names(part)


def _reachable(roots: Iterable[_Name], known: Mapping[_Name, Manifest]) -> set[_Name]:
    """The named artifacts, the truth beside them (of the same key), and all that they were made of."""
    beside: dict[str, list[_Name]] = {}
    for kind, key in known:
        beside.setdefault(key, []).append((kind, key))
    reached: set[_Name] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in reached or name not in known:
            continue
        reached.add(name)
        waiting += beside[name[1]]
        waiting += _names(known[name].provenance.get("inputs", []))
    return reached
