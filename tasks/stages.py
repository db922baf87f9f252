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
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field

from selu.config import ModelSettings, WorldSettings
from selu.errors import ArtifactError, TransientError
from selu.models.base import VisionLanguageModel
from selu.records import Episode, Frame, OracleEpisode, OracleStep, Record, Step
from selu.rounds import Workspace
from selu.store import ArtifactRef, Json, OracleRef, Store, artifact_key, read_table
from selu.tasks.progress import Meter, meter

__all__ = [
    "Made",
    "Model",
    "Shard",
    "Stage",
    "Value",
    "made_before",
    "make",
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
    """A stage of the pipeline. Raise the version when its result changes for equal inputs; a test watches the code."""

    name: str
    version: int = Field(ge=1)
    modules: tuple[str, ...] = Field(description="modules of the library whose code shapes its result")


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


class Made(Value):
    """What a stage's task returns: a reference, and whether there was anything to do."""

    ref: ArtifactRef
    cached: bool = Field(description="the store had it")
    seconds: float = Field(description="time that making it took, whenever that was")


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
    return settings.model_dump(mode="json", include={"dtype", "max_new_tokens"})


def world_config_of(settings: WorldSettings) -> dict[str, Json]:
    """What of a world's settings shapes its frames; not how long it may take."""
    return settings.model_dump(mode="json", exclude={"start_timeout", "step_timeout", "x_display"})


P = ParamSpec("P")
R = TypeVar("R", bound=Made)
RecordT = TypeVar("RecordT", bound=Record)


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
            message = f"{made.ref.kind} {made.ref.key} was in the store"
            return cast(R, Completed(name="Cached", message=message, data=made))

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


def made_before(store: Store, kind: str, key: str) -> Made | None:
    """What an earlier call made under this key, if it is whole."""
    ref = store.find(kind, key)
    return None if ref is None else Made(ref=ref, cached=True, seconds=store.manifest(ref).seconds)


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
    are hashed again before they are used.

    Raises:
        ArtifactError: an input is missing or altered.
    """
    store = workspace.store()
    revisions = [model.revision(store) for model in models]
    key = artifact_key(stage.name, stage.version, config, [ref.digest for ref in inputs], revisions)
    found = made_before(store, kind, key)
    if found is not None:
        return found
    for ref in inputs:
        store.verify(ref)
    provenance: dict[str, Json] = {
        "stage": stage.name,
        "version": stage.version,
        "shard": str(shard),
        "config": config,
        "inputs": [ref.model_dump(mode="json") for ref in inputs],
        "models": revisions,
    }
    report = shard.meter()
    report(0, shard.stop - shard.start)
    with store.create(kind, key, provenance) as draft, timed() as seconds:
        compute(draft.path, report)
    report(shard.stop - shard.start, shard.stop - shard.start)
    return Made(ref=draft.ref, cached=False, seconds=seconds())


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
