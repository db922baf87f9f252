"""Live progress: how far a stage is, at what rate, and how long it will take.

Tasks tell a display through :func:`meter`; which display listens is the program's choice (:func:`shown_on`), and by
default none does, so that tests and notebooks stay quiet. Every finished shard also moves the stage's bar in Prefect's
UI.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = [
    "Display",
    "LineDisplay",
    "Meter",
    "RichDisplay",
    "finished",
    "interrupt",
    "interrupted",
    "meter",
    "say",
    "shown_on",
]

logger = logging.getLogger("selu.progress")

# Prefect hands on what the loggers that it is told of (PREFECT_LOGGING_EXTRA_LOGGERS) let through, and leaves their level
# as it is: that of the root, which is warnings alone.
if logging.getLogger("selu").level == logging.NOTSET:
    logging.getLogger("selu").setLevel(logging.INFO)

Meter = Callable[[int, int], None]
"""Called with (done, total) of one shard, as often as its work likes."""

_CURVE_SECONDS = 5.0
"""A stage of one long shard moves its bar in the UI this often; each move is a request to the server."""


class Display(Protocol):
    """Someone who watches."""

    def advance(self, stage: str, shard: str, done: int, total: int) -> None:
        """A stage has `done` of `total` units; `shard` is how far it is in shards, e.g. 3/8."""
        ...

    def finish(self, stage: str, seconds: float, reused: int, tasks: int) -> None:
        """A stage has ended: `reused` of its tasks found their artifact in the store."""
        ...

    def say(self, text: str) -> None:
        """A line for people."""
        ...


class _Nobody:
    def advance(self, stage: str, shard: str, done: int, total: int) -> None:
        pass

    def finish(self, stage: str, seconds: float, reused: int, tasks: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="cyan")


def _ended(stage: str, seconds: float, reused: int, tasks: int) -> str:
    if not tasks:
        return f"{stage}: not run"
    if reused == tasks:
        return f"{stage}: nothing to do, it is in the store"
    again = f", {reused} of {tasks} parts were in the store already" if reused else ""
    return f"{stage}: {seconds:.1f} s{again}"


class RichDisplay:
    """Bars in a terminal, one for each stage at work."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[shard]}"),
            console=console,
            transient=True,
        )
        self._bars: dict[str, TaskID] = {}

    def advance(self, stage: str, shard: str, done: int, total: int) -> None:
        if stage not in self._bars:
            self._bars[stage] = self.progress.add_task(stage, total=total, shard="")
        self.progress.update(self._bars[stage], completed=done, total=total, shard=f"shard {shard}")

    def finish(self, stage: str, seconds: float, reused: int, tasks: int) -> None:
        # Stages come one after the other: whatever is still shown was part of this one.
        while self._bars:
            self.progress.remove_task(self._bars.popitem()[1])
        mark = "[dim]=[/]" if reused == tasks else "[green]✓[/]"
        self.progress.console.print(f"{mark} {_ended(stage, seconds, reused, tasks)}", highlight=False)

    def say(self, text: str) -> None:
        self.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)


class LineDisplay:
    """A line now and then, where there is no terminal."""

    def __init__(self, console: Console, every: float = 20.0) -> None:
        self.console = console
        self.every = every
        self._started: dict[str, tuple[float, int]] = {}
        """When a stage had first got anywhere, and how far: one that goes on does not begin at 0."""
        self._said = time.monotonic()

    def advance(self, stage: str, shard: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not done:
            return
        started, before = self._started.setdefault(stage, (now, done))
        # Of so little, or so short a time, nobody can tell the rest.
        if done <= before or 100 * done < total or now - started < min(1.0, self.every):
            return
        if now - self._said < self.every:
            return
        self._said = now
        rate = (done - before) / max(now - started, 1e-9)
        left = (total - done) / rate
        self.console.print(
            f"{stage}: {done} of {total}, shard {shard}, {rate:.1f}/s, {left:.0f} s left", highlight=False
        )

    def finish(self, stage: str, seconds: float, reused: int, tasks: int) -> None:
        # The next round, or the next seed of a comparison, has a stage of the same name.
        self._started.clear()
        self.console.print(_ended(stage, seconds, reused, tasks), highlight=False)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


_display: Display = _Nobody()
_interrupted = threading.Event()


@contextlib.contextmanager
def shown_on(console: Console) -> Iterator[None]:
    """Show the progress of all stages in this process on a console: bars in a terminal, else plain lines."""
    global _display  # noqa: PLW0603 (one terminal, one display)
    before = _display
    if console.is_terminal:
        bars = RichDisplay(console)
        _display = bars
        shown: contextlib.AbstractContextManager[object] = bars.progress
    else:
        _display = LineDisplay(console)
        shown = contextlib.nullcontext()
    try:
        with shown:
            yield
    finally:
        _display = before


def interrupt() -> None:
    """Make every task in this process stop at its next sign of progress (Ctrl-C reaches the main thread only)."""
    _interrupted.set()


def interrupted() -> bool:
    """Whether :func:`interrupt` was called: what fails from then on was stopped."""
    return _interrupted.is_set()


def finished(stage: str, seconds: float, reused: int, tasks: int) -> None:
    """Tell the display and the run's log that a stage has ended."""
    _display.finish(stage, seconds, reused, tasks)
    _log(_ended(stage, seconds, reused, tasks))


def say(text: str) -> None:
    """Show people a line, above the bars of what is at work and in the run's log."""
    _display.say(text)
    _log(text)


def _log(text: str) -> None:
    # What no run is at work on belongs to no run's log.
    if flow_run.id is not None:
        logger.info("%s", text)


def meter(stage: str, *, index: int = 0, count: int = 1, start: int = 0, whole: int | None = None) -> Meter:
    """What a task calls with (done, total) while it works on one shard.

    Args:
        stage: name of the stage.
        index, count: which shard of how many.
        start: units of the stage that lie before this shard.
        whole: units of the whole stage; None: of this shard alone.

    The returned function raises KeyboardInterrupt once :func:`interrupt` was called.
    """
    published = _Published(stage)

    def report(done: int, total: int) -> None:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        all_units = whole if whole is not None else total
        _display.advance(stage, f"{index + 1}/{count}", start + done, all_units)
        published.move((start + done) / max(all_units, 1), ended=done >= total)

    return report


_artifacts: dict[tuple[str, str], UUID] = {}
_artifacts_lock = threading.Lock()


class _Published:
    """A stage's bar in Prefect's UI, one for each flow run. The parts of a stage ("evaluation: actor before, probe A") come
    one after the other and share its bar, so that a round has as many bars as stages; the description says which part."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.bar = re.split(r"[:,]", stage, maxsplit=1)[0]
        self._moved = time.monotonic()

    def move(self, share: float, *, ended: bool) -> None:
        run = flow_run.id
        now = time.monotonic()
        if run is None or not (ended or now - self._moved > _CURVE_SECONDS):
            return
        self._moved = now
        percent = round(100 * min(share, 1.0), 1)
        try:
            with _artifacts_lock:
                known = _artifacts.get((run, self.bar))
                if known is not None:
                    update_progress_artifact(known, percent, description=self.stage)
                    return
                made = create_progress_artifact(
                    percent, key=re.sub(r"[^a-z0-9]+", "-", self.bar.lower()).strip("-"), description=self.stage
                )
                if isinstance(made, UUID):
                    _artifacts[run, self.bar] = made
        except (PrefectException, OSError, RuntimeError) as error:
            # A bar is no reason to lose a shard's work.
            logger.debug("the progress of %s could not be shown in Prefect's UI: %s", self.stage, error)
