"""Runs whose process died without a word, shown as crashed instead of running for ever.

A flow run leaves a note in its data folder that says which process runs it. Whoever finds the note of a dead process
on its own machine sets the run's state: `selu ui` and `selu serve` look every half minute, every other command once. Workers
on other machines are seen by their heartbeats, with ``deployments/automations.yaml``.
"""

from __future__ import annotations

import contextlib
import logging
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed

from selu import processes
from selu.config import Settings, validate_settings
from selu.rounds import Workspace

__all__ = ["longest_at_work", "mark_crashed", "note_process"]

logger = logging.getLogger(__name__)

_MESSAGE = "Its process is gone. What was finished is kept; run it again, and it goes on."
_GRACE = timedelta(seconds=15)
"""A flow run leaves its note right after it was set to run."""


def _notes(data_dir: Path) -> Path:
    return data_dir / "running"


def _is_dead(note: Path) -> bool | None:
    try:
        return processes.is_dead(note.read_text(), own_host=True)
    except OSError:
        return None


def note_process(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """What a flow does when it starts to run (``on_running``). A retry also ends the tasks of the attempt before, which a
    killed process left running."""
    folder = _notes(_data_dir(flow_run))
    with contextlib.suppress(OSError):  # a full disk is said by whoever has more to write
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(flow_run.id)).write_text(processes.own_name())
    if flow_run.run_count > 1:
        with contextlib.suppress(httpx.HTTPError), get_client(sync_client=True) as client:
            _crash_tasks(client, flow_run.id)


def _data_dir(flow_run: FlowRun) -> Path:
    """Of the settings that a flow was called with: they are an object, or JSON where a server handed them on."""
    settings = flow_run.parameters["settings"]
    told = settings if isinstance(settings, Settings) else validate_settings(settings)
    return Workspace.of(told).data_dir


def longest_at_work(data_dir: Path) -> timedelta:
    """For how long the oldest run that is still at work on this machine has been; zero if there is none."""
    started = [note.stat().st_mtime for note in _notes(data_dir).glob("*") if _is_dead(note) is False]
    return timedelta(seconds=max(0.0, time.time() - min(started))) if started else timedelta()


def mark_crashed(data_dir: Path, api: str | None = None) -> int:
    """Set the state of runs whose process on this machine is dead, and of their tasks; how many runs there were.

    `api` is the server's address, by default the one that Prefect's settings name. Without such runs it is not asked; one
    that does not answer is asked another time.
    """
    folder = _notes(data_dir)
    dead = [note for note in folder.glob("*") if _is_dead(note)]
    if not dead:
        return 0
    count = 0
    try:
        with temporary_settings({PREFECT_API_URL: api} if api else {}), get_client(sync_client=True) as client:
            for note in dead:
                run = _run_of(client, note)
                if run is not None and not _is_settled(run):
                    continue  # it may be on its way to a new process, which leaves a note of its own
                # Looked at again: a retry of the run may have begun.
                if _is_dead(note):
                    if run is not None and run.state is not None and not run.state.is_final():
                        _mark(client, run)
                        count += 1
                    note.unlink(missing_ok=True)
    except (httpx.HTTPError, PrefectException, RuntimeError, OSError) as error:
        logger.debug("runs of dead processes could not be marked: %s", error)
    return count


def _run_of(client: SyncPrefectClient, note: Path) -> FlowRun | None:
    try:
        return client.read_flow_run(UUID(note.name))
    except ObjectNotFound:
        return None


def _is_settled(run: FlowRun) -> bool:
    """Whether nothing is about to change: it is over, or it has long been in a state in which some process is at work."""
    if run.state is None or run.state.is_final():
        return True
    at_work = run.state.is_running() or run.state.is_cancelling() or run.state.name == "Paused"
    return at_work and datetime.now(UTC) - run.state.timestamp > _GRACE


def _mark(client: SyncPrefectClient, run: FlowRun) -> None:
    _crash_tasks(client, run.id)
    client.set_flow_run_state(run.id, Crashed(message=_MESSAGE), force=True)


def _crash_tasks(client: SyncPrefectClient, run_id: UUID) -> None:
    """End what a dead process left at work in a flow run."""
    begun = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING])))
    only = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
    for task_run in client.read_task_runs(flow_run_filter=only, task_run_filter=begun):
        client.set_task_run_state(task_run.id, Crashed(message=_MESSAGE), force=True)
