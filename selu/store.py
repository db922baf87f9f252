"""Content-addressed artifacts: immutable folders named by the hash of what made them. The only truth about what exists.

Layout below the root::

    <kind>/<key[:2]>/<key>/             an artifact: its files and manifest.json
    oracle/<kind>/<key[:2]>/<key>/      ground truth, out of reach of an ArtifactRef
    tmp/<draft>/                        being written; never read, removed once its process is gone
    quarantine/<name>/                  found damaged; kept for a look, never read

A draft is written below ``tmp``, flushed to the disk and renamed into place in one step, so whoever finds a folder
finds a whole one, on any number of processes and machines that share a POSIX volume. Nobody takes a lock: of two
makers of one key the first rename counts, and the other keeps what is there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import time
import types
import typing
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selu import processes
from selu.errors import ArtifactError, ConfigError, TerminalError, first_line
from selu.records import Record

__all__ = [
    "ArtifactRef",
    "Draft",
    "Json",
    "Manifest",
    "ManifestFile",
    "OracleRef",
    "Store",
    "arrow_schema",
    "artifact_key",
    "manifests",
    "read_table",
    "write_table",
]

logger = logging.getLogger(__name__)

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"

_MANIFEST = "manifest.json"
_DAMAGED = "damaged"
_KEY = r"^[0-9a-z][0-9a-z_-]+$"
# Drafts of a process we cannot look up (another machine, a boot ago) are given up after this many seconds untouched;
# nothing here writes for a week without a single file changing.
_ABANDONED_AFTER = 7 * 24 * 3600.0


class _Ref(BaseModel):
    # Pydantic's own regular expressions have no look-ahead.
    model_config = ConfigDict(extra="forbid", frozen=True, regex_engine="python-re")

    key: str = Field(pattern=_KEY, description="hash of what made it")
    digest: str = Field(description="hash of its bytes")


class ArtifactRef(_Ref):
    """A reference to an artifact; small and JSON-serialisable, so tasks pass it in place of data."""

    kind: str = Field(pattern=r"^(?!oracle|tmp$|quarantine$)[a-z][a-z0-9_]*$", description="e.g. episodes")


class OracleRef(_Ref):
    """A reference to ground truth. Not an :class:`ArtifactRef`, so that no stage but evaluation can be given one."""

    kind: str = Field(pattern=r"^oracle(_[a-z0-9_]+)?$", description="oracle, or oracle_ and more")


AnyRef: TypeAlias = ArtifactRef | OracleRef
RefT = TypeVar("RefT", ArtifactRef, OracleRef)
RecordT = TypeVar("RecordT", bound=Record)


class ManifestFile(BaseModel):
    """One file of an artifact."""

    # As above; no way out of the folder, on any system, for whoever reads what a manifest names.
    model_config = ConfigDict(extra="forbid", frozen=True, regex_engine="python-re")

    name: str = Field(
        pattern=r"^(?!/)(?!(?:.*/)?\.{0,2}(?:/|$))[^\\\x00]+$",
        description="path below the artifact's folder, with slashes",
    )
    size: int = Field(description="bytes")
    sha256: str


class Manifest(BaseModel):
    """What an artifact consists of and where it comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    kind: str
    key: str
    digest: str = Field(description="hash of the files' names and hashes; no time, no path, no provenance")
    files: tuple[ManifestFile, ...] = Field(description="sorted by name")
    provenance: dict[str, Any] = Field(description="stage, version, configuration, inputs: whatever its maker told")
    created: str = Field(description="ISO 8601, UTC")
    seconds: float = Field(description="wall-clock time from opening the draft to the end of writing")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


class Draft(Generic[RefT]):
    """A folder to write an artifact's files into; it becomes the artifact when the ``with`` block ends well."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digest = ""
        """Hash of what was written, once the block has ended; another than the reference's if somebody else stored the
        key first, with other bytes."""
        self._ref: RefT | None = None

    @property
    def ref(self) -> RefT:
        """The reference, once the ``with`` block has ended.

        Raises:
            RuntimeError: asked for inside the block, when nothing has been stored yet.
        """
        if self._ref is None:
            raise RuntimeError("a draft has its reference only after its `with` block has ended")
        return self._ref

    def __repr__(self) -> str:
        return f"Draft({self._ref or self.path})"


def artifact_key(stage: str, version: int, config: Json, inputs: Sequence[str], models: Sequence[str] = ()) -> str:
    """Key of what a stage makes: 32 hex digits over everything that shapes its result.

    Args:
        stage: name of the stage.
        version: of the stage's code.
        config: the settings that shape the result, from ``model_dump(mode="json")``.
        inputs: digests of the artifacts it reads, in their order.
        models: revisions of the models it runs, in their order.

    Raises:
        TypeError, ValueError: ``config`` is not JSON (NaN and infinity are not).
    """
    parts = {"stage": stage, "version": version, "config": config, "inputs": list(inputs), "models": list(models)}
    return hashlib.sha256(_canonical(parts)).hexdigest()[:32]


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _digest(files: Sequence[ManifestFile]) -> str:
    return hashlib.sha256(_canonical([[file.name, file.sha256] for file in files])).hexdigest()


class Store:
    """Artifacts below one folder. Cheap to make; any number may be open on one folder at once.

    Args:
        root: the folder; made if it is not there. An existing one may be read-only as long as nothing is created.

    Raises:
        ConfigError: ``root`` is a file.
        TerminalError: ``root`` is not there and cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"data_dir must be a folder, but {self.root} is (below) a file; choose another") from None
        except OSError as error:
            raise _explained(error, self.root) from error
        self._remove_drafts_of_the_dead()

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    # Ordinary artifacts

    def find(self, kind: str, key: str) -> ArtifactRef | None:
        """The artifact, or None; what is found counts as just used (:meth:`used`). A damaged one (no readable manifest, a
        file missing or of another size) is moved to ``quarantine`` and counts as not there, so that its stage makes it again.

        Raises:
            TerminalError: the folder may not be read, or a damaged one not be moved.
        """
        found = self._find(ArtifactRef(kind=kind, key=key, digest=""))
        return None if found is None else ArtifactRef(kind=kind, key=key, digest=found.digest)

    def create(self, kind: str, key: str, provenance: Mapping[str, Json]) -> AbstractContextManager[Draft[ArtifactRef]]:
        """A draft to write files into; stored when the block ends well, removed when it raises.

        ``provenance`` must hold ``stage`` for the catalog; the rest is the maker's to say. If somebody else stored
        the key meanwhile, theirs is kept and ``draft.ref`` points to it.

        Raises:
            ArtifactError: the block left nothing, or something other than plain files.
            TerminalError: the disk is full or the folder may not be written.
        """
        return self._create(ArtifactRef(kind=kind, key=key, digest=""), provenance)

    # Ground truth

    def find_oracle(self, kind: str, key: str) -> OracleRef | None:
        """:meth:`find` for ground truth."""
        found = self._find(OracleRef(kind=kind, key=key, digest=""))
        return None if found is None else OracleRef(kind=kind, key=key, digest=found.digest)

    def create_oracle(
        self, kind: str, key: str, provenance: Mapping[str, Json]
    ) -> AbstractContextManager[Draft[OracleRef]]:
        """:meth:`create` for ground truth."""
        return self._create(OracleRef(kind=kind, key=key, digest=""), provenance)

    # Both

    def path(self, ref: AnyRef) -> Path:
        """The artifact's folder; read it, never write it.

        Raises:
            ArtifactError: it is not there, is damaged, or was made again with other bytes than ``ref`` speaks of.
        """
        self.manifest(ref)
        return self._folder(ref)

    def manifest(self, ref: AnyRef) -> Manifest:
        """What the artifact consists of.

        Raises:
            ArtifactError: as :meth:`path`.
        """
        folder = self._folder(ref)
        manifest = self._whole(ref)
        if manifest is None:
            state = "damaged" if folder.exists() else "not there"
            raise ArtifactError(f"the artifact {folder} is {state}; run again, and the stage that makes it will")
        if ref.digest and manifest.digest != ref.digest:
            raise ArtifactError(
                f"the artifact {folder} was made again with other bytes (digest {manifest.digest[:12]}, expected "
                f"{ref.digest[:12]}); run again, so that what hangs on it follows"
            )
        return manifest

    def verify(self, ref: AnyRef) -> None:
        """Hash every file again.

        Raises:
            ArtifactError: names the files that are altered, missing or not the artifact's own.
        """
        folder, manifest = self._folder(ref), self.manifest(ref)
        try:
            altered = [file.name for file in manifest.files if _sha256(folder / file.name) != file.sha256]
            present = set(_file_names(folder))
        except FileNotFoundError as error:
            raise ArtifactError(f"{error.filename} vanished while it was verified") from error
        except OSError as error:
            raise _explained(error, folder) from error
        strange = sorted(present - {file.name for file in manifest.files} - {_MANIFEST})
        complaints = [f"{name} is altered" for name in altered] + [f"{name} does not belong to it" for name in strange]
        if complaints:
            raise ArtifactError(
                f"the artifact {folder} is not what was stored: {', '.join(complaints)}; delete the folder and run "
                "again, and the stage that makes it will"
            )

    def set_aside(self, ref: AnyRef) -> None:
        """Move an artifact to ``quarantine``, so that its stage makes it again; one that is gone already is no error.

        Raises:
            TerminalError: it may not be moved.
        """
        with contextlib.suppress(FileNotFoundError):
            self._quarantine(ref, self._folder(ref).lstat(), "no longer of use")

    def remove(self, ref: AnyRef) -> None:
        """Delete an artifact; one that is gone already is no error. Nobody ever sees half of it.

        Raises:
            TerminalError: it may not be deleted.
        """
        folder = self._folder(ref)
        doomed = self.root / "tmp" / f"removed-{ref.kind}-{ref.key}.{processes.own_name()}.{uuid.uuid4().hex[:8]}"
        try:
            _make_folder(doomed.parent)
            os.rename(folder, doomed)
            shutil.rmtree(doomed)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _explained(error, folder) from error

    def used(self, ref: AnyRef) -> datetime:
        """When the artifact was made or, if that is later, found the last time.

        Raises:
            ArtifactError: it is not there.
        """
        try:
            return datetime.fromtimestamp(self._folder(ref).stat().st_mtime, UTC)
        except FileNotFoundError:
            raise ArtifactError(f"there is no artifact {self._folder(ref)}") from None

    def all(self, kind: str | None = None) -> Iterator[ArtifactRef]:
        """Every whole artifact (of one kind), by kind and key; ground truth is not among them."""
        for manifest in manifests(self.root, kind):
            if not manifest.kind.startswith("oracle"):
                yield ArtifactRef(kind=manifest.kind, key=manifest.key, digest=manifest.digest)

    def everything(self) -> Iterator[AnyRef]:
        """A reference to each artifact that is or should be there, damaged or not, ground truth included."""
        for pattern, kind in (("*/??/*", ArtifactRef), ("oracle/*/??/*", OracleRef)):
            for folder in sorted(self.root.glob(pattern)):
                name = folder.parent.parent.name
                if folder.is_dir() and name not in ("tmp", "quarantine"):
                    manifest = _read_whole(folder)
                    yield kind(kind=name, key=folder.name, digest=manifest.digest if manifest else "")

    # Inside

    def _folder(self, ref: AnyRef) -> Path:
        base = self.root / "oracle" if isinstance(ref, OracleRef) else self.root
        return base / ref.kind / ref.key[:2] / ref.key

    def _whole(self, ref: AnyRef) -> Manifest | None:
        folder = self._folder(ref)
        try:
            manifest = _read_whole(folder)
        except OSError as error:
            raise _explained(error, folder) from error
        return manifest if manifest is not None and (manifest.kind, manifest.key) == (ref.kind, ref.key) else None

    def _find(self, ref: AnyRef) -> Manifest | None:
        folder = self._folder(ref)
        try:
            seen = folder.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _explained(error, folder) from error
        manifest = self._whole(ref)
        if manifest is None:
            self._quarantine(ref, seen, _DAMAGED)
        else:
            with contextlib.suppress(OSError):  # a store may be read-only
                os.utime(folder)
        return manifest

    def _quarantine(self, ref: AnyRef, seen: os.stat_result, why: str) -> None:
        """Move a folder aside. If another process has replaced it meanwhile, its new one is put back."""
        folder = self._folder(ref)
        aside = self.root / "quarantine" / f"{ref.kind}-{ref.key}-{uuid.uuid4().hex[:8]}"
        try:
            _make_folder(aside.parent)
            os.rename(folder, aside)
            moved = aside.lstat()
            if (moved.st_dev, moved.st_ino) != (seen.st_dev, seen.st_ino):
                # A third may have stored the key again by now: then theirs stays.
                with contextlib.suppress(OSError):
                    os.rename(aside, folder)
                return
        except FileNotFoundError:
            return
        except OSError as error:
            raise _explained(error, folder) from error
        level = logging.WARNING if why == _DAMAGED else logging.DEBUG
        logger.log(level, "the artifact %s was %s and is now at %s; it will be made again", folder, why, aside)

    @contextmanager
    def _create(self, ref: RefT, provenance: Mapping[str, Json]) -> Iterator[Draft[RefT]]:
        _canonical(provenance)
        started = time.monotonic()
        temporary = self.root / "tmp" / f"{ref.kind}-{ref.key}.{processes.own_name()}.{uuid.uuid4().hex[:8]}"
        draft: Draft[RefT] = Draft(temporary)
        try:
            _make_folder(temporary)
            yield draft
            files = _flushed_files(temporary)
            manifest = Manifest(
                kind=ref.kind,
                key=ref.key,
                digest=_digest(files),
                files=files,
                provenance=dict(provenance),
                created=datetime.now(UTC).isoformat(timespec="microseconds"),
                seconds=round(time.monotonic() - started, 3),
            )
            _write_flushed(temporary / _MANIFEST, manifest.model_dump_json(indent=1).encode() + b"\n")
            _flush_folders(temporary)
            draft.digest = manifest.digest
            draft._ref = ref.model_copy(update={"digest": self._publish(temporary, ref, manifest).digest})
        except Exception as error:
            # Full disks also arrive as the errors of Arrow, safetensors and others.
            if (explained := _disk_trouble(error, self.root)) is not None:
                raise explained from error
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _publish(self, temporary: Path, ref: AnyRef, manifest: Manifest) -> Manifest:
        """Rename into place; the manifest of what is there in the end."""
        folder = self._folder(ref)
        # Each turn ends in a whole artifact, or in a damaged one moved aside and another try.
        for _ in range(10):
            _make_folder(folder.parent)
            try:
                os.rename(temporary, folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            else:
                _flush_folder(folder.parent)
                return manifest
            theirs = self._find(ref)
            if theirs is not None:
                if theirs.digest != manifest.digest:
                    logger.warning(
                        "%s was made twice with different bytes (%s and %s); the first is kept. Its stage is not "
                        "deterministic, or its key leaves something out",
                        folder,
                        theirs.digest[:12],
                        manifest.digest[:12],
                    )
                return theirs
        raise ArtifactError(f"{folder} keeps being replaced by something damaged; is another program writing there?")

    def _remove_drafts_of_the_dead(self) -> None:
        with contextlib.suppress(OSError):
            for draft in (self.root / "tmp").iterdir():
                if _is_abandoned(draft):
                    logger.info("removing the unfinished %s: the process that wrote it is gone", draft)
                    shutil.rmtree(draft, ignore_errors=True)


def manifests(root: Path, kind: str | None = None) -> Iterator[Manifest]:
    """Manifests of all whole artifacts below a store's root, ground truth included, by kind and key.

    Only looks: damaged folders are passed over and left where they are.
    """
    patterns = ("*/??/*", "oracle/*/??/*") if kind is None else (f"{kind}/??/*", f"oracle/{kind}/??/*")
    for pattern in patterns:
        for folder in sorted(Path(root).glob(f"{pattern}/{_MANIFEST}")):
            with contextlib.suppress(OSError):
                manifest = _read_whole(folder.parent)
                if manifest is not None and manifest.key == folder.parent.name:
                    yield manifest


def _read_whole(folder: Path) -> Manifest | None:
    """The manifest if the folder is whole as far as names and sizes tell, else None.

    Raises:
        OSError: it may not be read, which says nothing about its being whole.
    """
    try:
        manifest = Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
        whole = manifest.digest == _digest(manifest.files) and all(
            stat.S_ISREG(status.st_mode) and status.st_size == file.size
            for file in manifest.files
            for status in [(folder / file.name).lstat()]
        )
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValidationError):
        return None
    return manifest if whole else None


# Files ---------------------------------------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_names(folder: Path) -> Iterator[str]:
    """Names of everything but folders below a folder, with slashes, in no order."""
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in [*names, *links]:
            yield (Path(parent) / name).relative_to(folder).as_posix()


def _flushed_files(folder: Path) -> tuple[ManifestFile, ...]:
    """Flush each file of a draft to the disk and describe it."""
    files = []
    for name in sorted(_file_names(folder)):
        path = folder / name
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"an artifact holds plain files only, and {name} is none")
        if name == _MANIFEST:
            raise ArtifactError(f"{_MANIFEST} is the store's own name; the stage must call its file otherwise")
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        files.append(ManifestFile(name=name, size=status.st_size, sha256=_sha256(path)))
    if not files:
        raise ArtifactError(f"the stage left nothing in {folder}, so there is nothing to store")
    return tuple(files)


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder; their rename is durable when it returns.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _flush_folders(root: Path) -> None:
    for parent, _, _ in os.walk(root, topdown=False):
        _flush_folder(Path(parent))


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _flush_folder(folder.parent)


def _explained(error: OSError, path: Path) -> TerminalError:
    """An operating system's refusal as one sentence with the way out."""
    place = error.filename if isinstance(error.filename, str) else str(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TerminalError(
            f"the disk that holds {path} is full; free some space or set data_dir to another disk, and run again: "
            "finished stages are kept"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return TerminalError(
            f"no permission to use {place} ({os.strerror(error.errno).lower()}); make {path} readable and writable, or "
            "set data_dir to a folder that is"
        )
    return TerminalError(f"cannot use {place}: {error.strerror or error}; mend that or set data_dir to another folder")


def _disk_trouble(error: Exception, root: Path) -> TerminalError | None:
    """A full, read-only or forbidden disk as one sentence; None for any other error of a stage."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return _explained(error, root)
        if error.errno in (errno.EACCES, errno.EPERM) and str(error.filename).startswith(str(root)):
            return _explained(error, root)
    elif not isinstance(error, TerminalError) and (
        os.strerror(errno.ENOSPC) in str(error) or (isinstance(error, RuntimeError) and _has_no_room(root))
    ):
        return _explained(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), root)
    return None


def _has_no_room(root: Path) -> bool:
    """Whether less than 1 MiB is left: torch says of a full disk no more than "iostream error" or "unexpected pos"."""
    try:
        left = os.statvfs(root)
    except OSError:
        return False
    return left.f_bavail * left.f_frsize < 1 << 20


# Processes -----------------------------------------------------------------------------------------------------------


def _is_abandoned(draft: Path) -> bool:
    """Whether nobody is writing a draft any more; a doubt keeps it."""
    dead = processes.is_dead(draft.name.partition(".")[2].rpartition(".")[0])
    if dead is not None:
        return dead
    try:
        newest = max(path.lstat().st_mtime for path in [draft, *draft.rglob("*")])
    except OSError:
        return False
    return time.time() - newest > _ABANDONED_AFTER


# Tables --------------------------------------------------------------------------------------------------------------

_SCALARS: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    bytes: pa.binary(),
}


def _column_type(annotation: Any) -> pa.DataType | None:
    """Arrow's type of a field, or None for what is nested and is kept as JSON text."""
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return _SCALARS[type(arguments[0])]
    if origin in (typing.Union, types.UnionType):
        inside = [argument for argument in arguments if argument is not type(None)]
        return _column_type(inside[0]) if len(inside) == 1 else None
    if origin in (tuple, list):
        members = {_column_type(argument) for argument in arguments if argument is not Ellipsis}
        member = members.pop() if len(members) == 1 else None
        return None if member is None else pa.list_(member)
    return None


def arrow_schema(record_type: type[Record]) -> pa.Schema:
    """The columns of a record's table: scalars and lists of scalars as such, anything nested as JSON text."""
    return pa.schema(
        [(name, _column_type(field.annotation) or pa.string()) for name, field in record_type.model_fields.items()]
    )


def _json_columns(record_type: type[Record]) -> set[str]:
    return {name for name, field in record_type.model_fields.items() if _column_type(field.annotation) is None}


def write_table(path: Path, records: Sequence[RecordT], record_type: type[RecordT]) -> None:
    """Write records as Parquet; the same records give the same bytes.

    Args:
        path: a file in a draft (the draft makes it durable).
        records: rows in the order they shall have; may be empty, the columns come from ``record_type``.
        record_type: the records' type.

    Raises:
        ArtifactError: a value does not fit its column, e.g. a whole number beyond 64 bits.
    """
    nested = _json_columns(record_type)
    schema = arrow_schema(record_type)
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for record in records:
        for name, values in columns.items():
            values.append(getattr(record, name))
        if nested:
            plain = record.model_dump(mode="json", include=nested)
            for name in nested:
                columns[name][-1] = _canonical(plain[name]).decode()
    try:
        table = pa.table(
            {name: pa.array(values, type=schema.field(name).type) for name, values in columns.items()}, schema=schema
        )
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise ArtifactError(f"a {record_type.__name__} does not fit the table {path.name}: {error}") from error
    binary = {field.name for field in schema if pa.types.is_binary(field.type)}
    pq.write_table(
        table,
        path,
        compression="zstd",
        version="2.6",
        # Pictures are compressed already: a dictionary and minima of them would only double the file.
        use_dictionary=[name for name in schema.names if name not in binary],
        write_statistics=[name for name in schema.names if name not in binary],
        row_group_size=1_000 if binary else 100_000,
    )


def read_table(path: Path, record_type: type[RecordT]) -> list[RecordT]:
    """Records from a table of :func:`write_table`, in their order.

    Raises:
        ArtifactError: the file is missing, is no Parquet, or holds other columns or values than ``record_type`` has.
    """
    try:
        # ParquetFile, and not read_table: the latter takes columns from folder names such as `key=value` as well.
        with pq.ParquetFile(path) as file:
            table = file.read()
    except FileNotFoundError:
        raise ArtifactError(f"no such table: {path}") from None
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path} is no readable Parquet file: {first_line(error)}") from error
    expected = list(record_type.model_fields)
    if sorted(table.column_names) != sorted(expected):
        raise ArtifactError(
            f"{path} must hold the columns of {record_type.__name__} ({', '.join(expected)}), got "
            f"{', '.join(table.column_names)}"
        )
    nested = _json_columns(record_type)
    try:
        rows = table.to_pylist()
        for row in rows:
            row.update({name: json.loads(row[name]) for name in nested})
        return [record_type.model_validate(row) for row in rows]
    except (ValidationError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} holds a row that is no {record_type.__name__}: {error}") from error
