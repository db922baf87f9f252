"""What all stages share: a name with a version, a content key, shards, and the rule that the store alone knows what
exists.

A stage's task computes its key, looks into the store, and works only if nothing whole is there. Prefect keeps no
results of its own (``NO_CACHE``): a second record of what exists could outlive the artifact that it speaks of, and a
retry from the UI would then resume from nothing. Called again, by whomever, a stage that is done ends in milliseconds
and its task run shows the state *Cached*.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

from prefect import Task, get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field

from selu.budget import Tokens, counted
from selu.config import ModelSettings, WorldSettings
from selu.errors import ArtifactError, TransientError
from selu.models.base import VisionLanguageModel
from selu.player.layouts import LAYOUTS_FILE
from selu.records import Episode, Frame, OracleEpisode, OracleStep, Record, Step
from selu.rounds import Workspace
from selu.store import ArtifactRef, Json, OracleRef, Store, artifact_key, read_table
from selu.tasks.progress import Meter, interrupted, meter, say
from selu.worlds.own import source_of
from selu.worlds.programs import program_digest

__all__ = [
    "ENGINE",
    "Made",
    "MadeWithTruth",
    "Model",
    "Outcome",
    "Sealed",
    "Shard",
    "Stage",
    "Value",
    "device_type_of",
    "file_digest",
    "find",
    "key_of",
    "make",
    "make_sealed",
    "make_with_truth",
    "model_config_of",
    "read_all",
    "read_episodes",
    "read_frames",
    "read_oracle",
    "read_steps",
    "shards",
    "stage_task",
    "timed",
    "world_config_of",
]

_RETRY_DELAYS = (2.0, 10.0)
"""Seconds before a transient failure is tried again, twice: a player needs a second or two to start afresh."""


class Value(BaseModel):
    """A small value that tasks pass around: frozen, JSON-serialisable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(Value):
    """A stage of the pipeline. Raise the version when its result changes for equal inputs by more than the rounding of a model's
    arithmetic, which changes between machines, too; a test watches the code."""

    name: str
    version: int = Field(ge=1)
    modules: tuple[str, ...] = Field(description="modules of the library whose code shapes its result")
    on_gpu: bool = Field(default=False, description="it keeps a GPU busy, so it takes one of the workspace's slots")


ENGINE = ("selu.models.transformers_engine", "selu.models.reading", "selu.models.base")
"""Modules of the default engine: what a model answers hangs on them, so that each stage that asks one names them."""


class Shard(Value):
    """A part of a stage's work: units `start` to `stop` of `whole`. `stage` is how it is called on screen.

    `whole` is None where the work itself tells how many units it has, such as a fine-tuning's steps.
    """

    stage: str
    index: int = 0
    count: int = 1
    start: int = 0
    stop: int = 1
    whole: int | None = None

    def __str__(self) -> str:
        return self.stage if self.count == 1 else f"{self.stage} {self.index + 1}/{self.count}"

    def meter(self) -> Meter:
        """What the shard's work reports its progress to."""
        return meter(self.stage, index=self.index, count=self.count, start=self.start, whole=self.whole)


def shards(stage: str, whole: int, size: int) -> list[Shard]:
    """Cut `whole` units into shards of `size`, the last one smaller; there is always one."""
    starts = range(0, max(whole, 1), size)
    return [
        Shard(stage=stage, index=index, count=len(starts), start=start, stop=min(start + size, whole), whole=whole)
        for index, start in enumerate(starts)
    ]


class Outcome(Value):
    """What a stage's task returns beside its references: whether there was anything to do."""

    cached: bool = Field(description="the store had it")
    seconds: float = Field(description="time that making it took, whenever that was")


class Made(Outcome):
    """An artifact."""

    ref: ArtifactRef


class Sealed(Outcome):
    """Ground truth alone."""

    oracle: OracleRef


class MadeWithTruth(Made):
    """An artifact, with the truth about it under a reference that only evaluation takes."""

    oracle: OracleRef


class Model(Value):
    """A model by reference: its settings, and the adapter that a round trained for it."""

    settings: ModelSettings
    adapter: ArtifactRef | None = None

    def adapter_path(self, store: Store) -> Path | None:
        """Folder of the adapter; None leaves the settings' own."""
        return None if self.adapter is None else store.path(self.adapter)

    def revision(self, store: Store) -> str:
        """The loaded model's revision, without loading it."""
        from selu.models import model_revision

        return model_revision(self.settings, self.adapter_path(store))

    def load(self, store: Store) -> VisionLanguageModel:
        """The model; one that this process holds already is used again."""
        from selu.models import load_model

        if self.adapter is not None:
            store.verify(self.adapter)
        return load_model(self.settings, self.adapter_path(store))


def model_config_of(settings: ModelSettings) -> dict[str, Json]:
    """What of a model's settings shapes its answers beside the revision; not how many prompts it reads at a time."""
    config: dict[str, Json] = settings.model_dump(
        mode="json", include={"engine", "dtype", "attention", "quantization", "max_new_tokens", "threads"}
    )
    return config | {"device": device_type_of(settings), "prompt_style": settings.prompt_style}


def device_type_of(settings: ModelSettings) -> str:
    """``cpu``, ``cuda`` or ``mps``: each adds up in an order of its own. Which one of several GPUs makes no difference."""
    if settings.device != "auto":
        return settings.device.partition(":")[0]
    from selu.models.transformers_engine import resolve_device

    return resolve_device(settings.device).type


def world_config_of(settings: WorldSettings) -> dict[str, Json]:
    """What of a world's settings shapes its frames; not how long it may take. Of the embedded player that includes the
    layouts, of a user's own world or grammar the file of its module, of a player of their own its files."""
    config: dict[str, Json] = settings.model_dump(
        mode="json", exclude={"start_timeout", "step_timeout", "restarts", "x_display"}
    )
    for setting in ("name", "skill_set"):
        if ":" in getattr(settings, setting):
            source = source_of(getattr(settings, setting), f"world.{setting}")
            config[f"{setting}_source"] = hashlib.sha256(source.read_bytes()).hexdigest()
    if settings.name == "thor" and not settings.embedded:
        config["standing_places"] = "of the scene as it is loaded"  # once it was of the scene as it is prepared
    if settings.local_executable_path is not None:
        config["local_executable_path"] = program_digest(settings.local_executable_path)
    return config | {"layouts": file_digest(LAYOUTS_FILE)}


@functools.cache
def file_digest(path: Path) -> str:
    """sha256 of a file that ships with the project, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


logger = logging.getLogger("selu.store")

P = ParamSpec("P")
R = TypeVar("R", bound=Outcome)
RecordT = TypeVar("RecordT", bound=Record)
RefT = TypeVar("RefT", ArtifactRef, OracleRef)


def _is_transient(_task: Task[..., Any], _run: Any, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), TransientError)


def stage_task(stage: Stage) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a Prefect task of a stage's body, which takes a ``shard`` among its arguments.

    Task runs are named after their shard; transient failures are tried again, terminal ones are not; a body that found
    its artifact in the store ends as *Cached*.
    """

    def decorate(body: Callable[P, R]) -> Task[P, R]:
        @functools.wraps(body)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            made = body(*args, **kwargs)
            if not made.cached:
                return made
            return cast(R, Completed(name="Cached", message=f"{stage.name}: it was in the store", data=made))

        return task(
            name=stage.name,
            version=str(stage.version),
            task_run_name="{shard}",
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=len(_RETRY_DELAYS),
            retry_delay_seconds=list(_RETRY_DELAYS),
            retry_condition_fn=_is_transient,
        )(run)

    return decorate


class _Job(NamedTuple):
    """A stage's work on one shard: where its result belongs, and what it is made of."""

    store: Store
    shard: Shard
    key: str
    provenance: dict[str, Json]
    inputs: Sequence[ArtifactRef | OracleRef]
    slot: str | None

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        stage: Stage,
        shard: Shard,
        config: Json,
        inputs: Sequence[ArtifactRef | OracleRef],
        models: Sequence[Model],
    ) -> _Job:
        store = workspace.store()
        revisions = [model.revision(store) for model in models]
        key = artifact_key(stage.name, stage.version, config, [ref.digest for ref in inputs], revisions)
        provenance: dict[str, Json] = {
            "stage": stage.name,
            "version": stage.version,
            "shard": str(shard),
            "config": config,
            "inputs": [ref.model_dump(mode="json") for ref in inputs],
            "models": revisions,
        }
        return cls(store, shard, key, provenance, inputs, workspace.gpu_slot if stage.on_gpu else None)

    def found(self, kind: str) -> Made | None:
        """What the store has of it, hashed again."""
        ref = _unaltered(self.store, self.store.find(kind, self.key))
        return None if ref is None else Made(ref=ref, cached=True, seconds=self.store.manifest(ref).seconds)

    @contextlib.contextmanager
    def work(self) -> Iterator[tuple[Meter, Callable[[], float], Tokens]]:
        """Verify the inputs, wait for a slot if one is needed, show the shard's beginning and end, and count the time and
        the tokens that it takes."""
        for ref in self.inputs:
            self.store.verify(ref)
        report, size = self.shard.meter(), self.shard.stop - self.shard.start
        report(0, size)
        with _occupied(self.slot, self.shard), timed() as seconds, counted() as tokens:
            yield report, seconds, tokens
        report(size, size)


_LEASE = 60.0
"""Seconds after which the slot of a process that was killed is free again; a living one renews its lease."""
_LOOKS_EVERY, _LONGEST_TRY = 3.0, 20.0
"""Seconds between two looks, of who waits for a slot, whether one is free or the run is to stop; and to take one."""


@contextlib.contextmanager
def _occupied(slot: str | None, shard: Shard) -> Iterator[None]:
    """Hold a slot of a global concurrency limit; while it is waited for, the run can be stopped."""
    with contextlib.ExitStack() as held:
        waits = False
        while slot is not None:
            if interrupted():
                raise KeyboardInterrupt
            if _is_free(slot, shard):
                # Should another one be quicker, it is tried again. A lease that cannot be renewed, because the server is
                # restarted, is no reason to lose what is being made.
                occupied = concurrency(
                    slot,
                    strict=True,
                    timeout_seconds=_LONGEST_TRY,
                    lease_duration=_LEASE,
                    raise_on_lease_renewal_failure=False,
                )
                with contextlib.suppress(TimeoutError):
                    held.enter_context(occupied)
                    break
            elif not waits:
                say(f"{shard}: all slots of {slot} are taken, waiting for one")
                waits = True
            time.sleep(_LOOKS_EVERY)
        yield


def _is_free(slot: str, shard: Shard) -> bool:
    try:
        with get_client(sync_client=True) as client:
            limit = client.read_global_concurrency_limit_by_name(slot)
    except ObjectNotFound:
        raise TransientError(f"{shard}: the global concurrency limit {slot} is gone from Prefect's server") from None
    return limit.active_slots < limit.limit


def _unaltered(store: Store, ref: RefT | None) -> RefT | None:
    """An artifact that was found, unless its bytes are not those that were stored: then it is set aside, to be made again.

    Not only stages read it, which look themselves: guards' decisions, figures and the report come from it too.
    """
    if ref is None:
        return None
    try:
        store.verify(ref)
    except ArtifactError as error:
        logger.warning("%s; it is made again", error)
        store.set_aside(ref)
        return None
    return ref


def make(
    workspace: Workspace,
    stage: Stage,
    shard: Shard,
    kind: str,
    compute: Callable[[Path, Meter], None],
    *,
    config: Json,
    inputs: Sequence[ArtifactRef | OracleRef] = (),
    models: Sequence[Model] = (),
) -> Made:
    """Find an artifact in the store, or have `compute` write its files into the folder that it is given.

    The key covers the stage with its version, `config`, the digests of `inputs` and the revisions of `models`. Inputs
    are hashed again before they are used, and so is what is found: altered, it is made again.

    Raises:
        ArtifactError: an input is missing or altered.
        TransientError: a slot that it needs cannot be had.
    """
    job = _Job.of(workspace, stage, shard, config, inputs, models)
    found = job.found(kind)
    if found is not None:
        return found
    with job.work() as (report, seconds, tokens):
        found = job.found(kind) if job.slot else None
        if found is not None:  # another run has made it while this one waited for its slot
            return found
        with job.store.create(kind, job.key, job.provenance) as draft:
            compute(draft.path, report)
            # A stage that is found in the store still tells what it took.
            job.provenance["tokens"] = tokens.as_dict()
    return Made(ref=draft.ref, cached=False, seconds=seconds())


def key_of(
    workspace: Workspace,
    stage: Stage,
    shard: Shard,
    *,
    config: Json,
    inputs: Sequence[ArtifactRef | OracleRef] = (),
    models: Sequence[Model] = (),
) -> str:
    """The key under which :func:`make` stores."""
    return _Job.of(workspace, stage, shard, config, inputs, models).key


def find(
    workspace: Workspace,
    stage: Stage,
    shard: Shard,
    kind: str,
    *,
    config: Json,
    inputs: Sequence[ArtifactRef | OracleRef] = (),
    models: Sequence[Model] = (),
) -> Made | None:
    """What :func:`make` would find in the store; None where it would have to be made."""
    return _Job.of(workspace, stage, shard, config, inputs, models).found(kind)


def make_sealed(
    workspace: Workspace,
    stage: Stage,
    shard: Shard,
    kind: str,
    compute: Callable[[Path, Meter], None],
    *,
    config: Json,
) -> Sealed:
    """:func:`make` for ground truth."""
    job = _Job.of(workspace, stage, shard, config, (), ())
    found = _unaltered(job.store, job.store.find_oracle(kind, job.key))
    if found is not None:
        return Sealed(oracle=found, cached=True, seconds=job.store.manifest(found).seconds)
    with job.work() as (report, seconds, _), job.store.create_oracle(kind, job.key, job.provenance) as draft:
        compute(draft.path, report)
    return Sealed(oracle=draft.ref, cached=False, seconds=seconds())


def make_with_truth(
    workspace: Workspace,
    stage: Stage,
    shard: Shard,
    kinds: tuple[str, str],
    compute: Callable[[Path, Meter], Callable[[Path], None]],
    *,
    config: Json,
    inputs: Sequence[ArtifactRef | OracleRef] = (),
    models: Sequence[Model] = (),
) -> MadeWithTruth:
    """:func:`make` for an artifact and the truth about it, two artifacts of one key and of the two `kinds`.

    `compute` writes the first and returns what writes the second. The truth's provenance names the digest that it is
    about (``about``): a pair that does not belong together, as a crash between the two can leave where results vary
    from run to run, counts as not there.

    Raises:
        ArtifactError: an input is missing or altered.
        TransientError: another process made the same with other bytes; the next try makes both again.
    """
    job = _Job.of(workspace, stage, shard, config, inputs, models)
    store, (kind, oracle_kind) = job.store, kinds
    found = _unaltered(store, store.find(kind, job.key))
    truth = _unaltered(store, store.find_oracle(oracle_kind, job.key))
    if found is not None and truth is not None:
        if store.manifest(truth).provenance.get("about") == found.digest:
            return MadeWithTruth(ref=found, oracle=truth, cached=True, seconds=store.manifest(found).seconds)
        store.set_aside(found)
        store.set_aside(truth)
    with job.work() as (report, seconds, tokens):
        with store.create(kind, job.key, job.provenance) as draft:
            write_truth = compute(draft.path, report)
            job.provenance["tokens"] = tokens.as_dict()
        with store.create_oracle(oracle_kind, job.key, {**job.provenance, "about": draft.digest}) as sealed:
            write_truth(sealed.path)
    if store.manifest(sealed.ref).provenance.get("about") != draft.ref.digest:
        raise TransientError(f"{shard}: two processes made this at once and came to different bytes; making it again")
    return MadeWithTruth(ref=draft.ref, oracle=sealed.ref, cached=False, seconds=seconds())


@contextlib.contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Seconds from here to the end of the block, or until now inside it."""
    started = time.perf_counter()
    ended: list[float] = []
    yield lambda: (ended[0] if ended else time.perf_counter()) - started
    ended.append(time.perf_counter())


def read_all(store: Store, refs: Iterable[ArtifactRef], table: str, record_type: type[RecordT]) -> list[RecordT]:
    """The records of one table of several artifacts, one after the other.

    Raises:
        ArtifactError: an artifact is missing or its table unreadable.
    """
    return [record for ref in refs for record in read_table(store.path(ref) / f"{table}.parquet", record_type)]


def read_episodes(store: Store, refs: Iterable[ArtifactRef]) -> list[Episode]:
    """Episodes of recordings."""
    return read_all(store, refs, "episodes", Episode)


def read_steps(store: Store, refs: Iterable[ArtifactRef]) -> list[Step]:
    """Steps of recordings."""
    return read_all(store, refs, "steps", Step)


def read_frames(store: Store, refs: Iterable[ArtifactRef]) -> list[Frame]:
    """Every frame of recordings."""
    return read_all(store, refs, "frames", Frame)


def read_oracle(store: Store, refs: Iterable[OracleRef]) -> tuple[list[OracleEpisode], list[OracleStep]]:
    """Ground truth of recordings: of their episodes, and of every frame."""
    episodes: list[OracleEpisode] = []
    steps: list[OracleStep] = []
    for ref in refs:
        folder = store.path(ref)
        episodes += read_table(folder / "oracle_episodes.parquet", OracleEpisode)
        steps += read_table(folder / "oracle_steps.parquet", OracleStep)
    if not episodes:
        raise ArtifactError("there is no ground truth in what evaluation was given")
    return episodes, steps
