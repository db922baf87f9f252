"""How a round's shards are run, and an account of its stages: how long each took, what it made, what it found made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Flow
from prefect.context import FlowRunContext
from prefect.exceptions import ExternalSignal
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from selu.config import OrchestrationSettings
from selu.errors import ConfigError, NothingToLearn
from selu.rounds import StageName, StageRecord
from selu.store import ArtifactRef
from selu.tasks.progress import finished, interrupt, say
from selu.tasks.stages import Made, Outcome, timed

__all__ = ["Account", "Ledger", "on_chosen_runner", "one_at_a_time"]

P = ParamSpec("P")
R = TypeVar("R")
MadeT = TypeVar("MadeT", bound=Outcome)


def one_at_a_time() -> TaskRunner[PrefectFuture[Any]]:
    """The default runner. Inside a shard the worlds step side by side and the models answer in batches, on all cores; a
    second shard beside it would only share them."""
    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1)
    return runner


def on_chosen_runner(flow: Flow[P, R], settings: OrchestrationSettings) -> Flow[P, R]:
    """The flow, with its tasks run by whom the settings name.

    Raises:
        ConfigError: what talks to Dask or Ray is not installed.
    """
    if settings.task_runner == "threads":
        return flow
    try:
        runner = _dask(settings) if settings.task_runner == "dask" else _ray(settings)
    except ImportError as error:
        raise ConfigError(
            f"orchestration.task_runner={settings.task_runner} is not installed ({error}): pip install "
            f'"selu[{settings.task_runner}]".'
        ) from None
    return flow.with_options(task_runner=runner)


def _dask(settings: OrchestrationSettings) -> TaskRunner[Any]:
    from prefect_dask.task_runners import DaskTaskRunner

    outer, address = FlowRunContext.get(), settings.address
    if outer is not None and isinstance(outer.task_runner, DaskTaskRunner):
        # A flow within a flow shares its cluster, whose workers hold the models.
        client: Any = outer.task_runner.client
        address = client.scheduler.address
    # One thread a worker: what shares a process shares its models and torch's settings.
    own = {"n_workers": settings.workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    runner: Any = DaskTaskRunner(address=address) if address else DaskTaskRunner(cluster_kwargs=own)
    return cast(TaskRunner[Any], runner)


def _ray(settings: OrchestrationSettings) -> TaskRunner[Any]:
    from prefect_ray import RayTaskRunner

    own = {"num_cpus": settings.workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    runner: Any = RayTaskRunner(address=settings.address) if settings.address else RayTaskRunner(init_kwargs=own)
    return cast(TaskRunner[Any], runner)


class Account:
    """What the tasks of one stage made."""

    def __init__(self) -> None:
        self.made: list[Outcome] = []
        self.waited = 0.0
        """Seconds in which nobody worked."""

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens in the block is no work: a person is waited for."""
        with timed() as seconds:
            yield
        self.waited += seconds()

    def one(self, future: PrefectFuture[MadeT]) -> MadeT:
        """Wait for a task, note what it made and give that back.

        Raises:
            Exception: the task's own.
        """
        made = future.result()
        self.made.append(made)
        return made

    def one_if_any(self, future: PrefectFuture[Made]) -> ArtifactRef | None:
        """A dataset version, or None where no label was accepted, which is said: the judgements are worth having all the
        same, and a model that learns nothing keeps what it knows."""
        try:
            return self.one(future).ref
        except NothingToLearn as error:
            say(str(error))
            return None

    def all(self, futures: Iterable[PrefectFuture[MadeT]]) -> list[MadeT]:
        """Wait for tasks, one for each shard, and note what they made, in the order of the shards.

        Raises:
            Exception: that of the first shard that failed; the others that were at work have kept theirs.
        """
        return [self.one(future) for future in list(futures)]


class Ledger:
    """Stages in the order in which they were first entered."""

    def __init__(self) -> None:
        self.stages: list[StageRecord] = []

    @contextlib.contextmanager
    def stage(self, name: StageName) -> Iterator[Account]:
        """Time a stage and note what it made; one that fails is not noted."""
        account = Account()
        try:
            with timed() as seconds:
                yield account
        except (KeyboardInterrupt, ExternalSignal):
            # The run is stopped, by Ctrl-C or by a cancellation: the task at work in another thread must not go on.
            interrupt()
            raise
        reused = sum(made.cached for made in account.made)
        record = StageRecord(
            name=name,
            seconds=seconds() - account.waited,
            made_in_seconds=sum(made.seconds for made in account.made),
            cached=reused == len(account.made),
            reused=reused,
            tasks=len(account.made),
            artifacts=tuple(made.ref for made in account.made if isinstance(made, Made)),
        )
        self.stages.append(record)
        finished(name.replace("_", " "), record.seconds, reused, len(account.made))
