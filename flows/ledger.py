"""How a round's shards are run, and an account of its stages: how long each took, what it made, what it found made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from selu.rounds import StageName, StageRecord
from selu.tasks.progress import finished
from selu.tasks.stages import Made, Outcome, timed

__all__ = ["Account", "Ledger", "one_at_a_time"]

MadeT = TypeVar("MadeT", bound=Outcome)


def one_at_a_time() -> TaskRunner[PrefectFuture[Any]]:
    """The default runner. Inside a shard the worlds step side by side and the models answer in batches, on all cores; a
    second shard beside it would only share them. Another one, e.g. of Dask or Ray, is given by
    ``learning_round.with_options(task_runner=...)``."""
    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1)
    return runner


class Account:
    """What the tasks of one stage made."""

    def __init__(self) -> None:
        self.made: list[Outcome] = []

    def one(self, future: PrefectFuture[MadeT]) -> MadeT:
        """Wait for a task, note what it made and give that back.

        Raises:
            Exception: the task's own.
        """
        made = future.result()
        self.made.append(made)
        return made

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
        with timed() as seconds:
            yield account
        reused = sum(made.cached for made in account.made)
        record = StageRecord(
            name=name,
            seconds=seconds(),
            made_in_seconds=sum(made.seconds for made in account.made),
            cached=reused == len(account.made),
            reused=reused,
            tasks=len(account.made),
            artifacts=tuple(made.ref for made in account.made if isinstance(made, Made)),
        )
        self.stages.append(record)
        finished(name.replace("_", " "), record.seconds, reused, len(account.made))
