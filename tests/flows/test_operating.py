"""How runs are operated: approval, slots, cancellation, crashes, other task runners."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
from prefect.client.schemas.objects import FlowRun
from prefect.flow_runs import resume_flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from prefect.states import AwaitingRetry

from selu import processes
from selu.config import OrchestrationSettings, load_settings
from selu.errors import ConfigError
from selu.flows import crashes
from selu.flows.approval import check_somebody_can_approve
from selu.flows.crashes import mark_crashed, note_process
from selu.flows.learning_round import learning_round
from selu.flows.ledger import on_chosen_runner
from selu.rounds import Workspace
from selu.tasks.checks import check_models
from selu.tasks.stages import _occupied
from tests.dummy_world import small_settings

pytestmark = pytest.mark.usefixtures("dummies")


def _runs(state: str) -> list[FlowRun]:
    named = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=[state])))
    with get_client(sync_client=True) as client:
        return list(client.read_flow_runs(flow_run_filter=named))


class _Person(threading.Thread):
    """Resumes whatever is paused, saying what it was told to say of each model."""

    def __init__(self, promote: dict[str, bool]) -> None:
        super().__init__(daemon=True)
        self.promote, self.seen, self.ended = promote, [], threading.Event()
        self.url = PREFECT_API_URL.value()

    def run(self) -> None:
        with temporary_settings({PREFECT_API_URL: self.url}):
            while not self.ended.wait(0.5):
                for run in _runs("Paused"):
                    assert run.state is not None
                    who = str(run.state.state_details.pause_key).partition("-")[0]
                    self.seen.append(who)
                    answer = {"promote": self.promote[who], "reason": "a look at <b>it</b>"}
                    resume_flow_run(run.id, run_input=answer)


# Approval


def test_a_person_decides_what_is_promoted_and_is_not_asked_twice(small_model: Path, tmp_path: Path) -> None:
    settings = small_settings(tmp_path, small_model)
    settings = settings.model_copy(update={"guard": settings.guard.model_copy(update={"approval": True})})
    person = _Person({"critic": True, "actor": False})
    person.start()
    try:
        made = learning_round(settings)
    finally:
        person.ended.set()
        person.join()
    assert person.seen == ["critic", "actor"]
    assert made.critic_adapter == made.critic_candidate is not None
    assert made.actor_adapter is None
    assert made.actor_candidate is not None
    assert {report.who: report.passed for report in made.guards} == {"critic": True, "actor": False}
    assert made.guards[1].reason == "a person refused it: a look at <b>it</b>"
    assert made.guards[1].signals, "what the guard saw is kept with what the person said"

    again = learning_round(settings)  # nobody is there to answer
    assert again.actor_adapter is None
    assert again.cached == [stage.name for stage in again.stages]


def test_nobody_waits_where_nobody_could_answer() -> None:
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(ConfigError, match="start one with `selu ui`"),
    ):
        check_somebody_can_approve()


# Slots


@pytest.fixture
def slot() -> Iterator[str]:
    name = "gpu of a test"
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, 1)
        yield name
        client.delete_global_concurrency_limit_by_name(name)


def test_a_slot_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prefect gcl create nowhere --limit 1"):
        check_models.fn(Workspace(data_dir=tmp_path, gpu_slot="nowhere"), {})


def test_two_runs_share_one_slot(slot: str, small_model: Path, tmp_path: Path) -> None:
    settings = small_settings(tmp_path, small_model, orchestration={"gpu_slot": slot})
    inside: list[str] = []
    most: list[int] = []

    def hold(name: str, url: str | None) -> None:
        with temporary_settings({PREFECT_API_URL: url}), _occupied(slot):
            inside.append(name)
            most.append(len(inside))
            time.sleep(0.5)
            inside.remove(name)

    threads = [threading.Thread(target=hold, args=(name, PREFECT_API_URL.value())) for name in "ab"]
    for thread in threads:
        thread.start()
    made = learning_round(settings)
    for thread in threads:
        thread.join()
    assert most == [1, 1]
    assert made.critic_adapter is not None
    with get_client(sync_client=True) as client:
        assert client.read_global_concurrency_limit_by_name(slot).active_slots == 0


# Crashes and cancellation


_STUCK = """
import sys, time
from prefect import flow, task
from selu.flows.crashes import note_process

@task
def work():
    print("at work", flush=True)
    time.sleep(600)

@flow(on_running=[note_process], persist_result=False)
def stuck():
    work()

stuck()
"""


def test_a_run_whose_process_is_killed_is_shown_as_crashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = PREFECT_API_URL.value()
    assert url is not None
    environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    with subprocess.Popen([sys.executable, "-c", _STUCK], env=environment, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert b"at work" in child.stdout.readline()
        assert mark_crashed(tmp_path) == 0, "it is alive"
        (note,) = (tmp_path / "running").iterdir()
        child.kill()
    assert mark_crashed(tmp_path) == 0, "so soon it may be about to be retried"
    assert note.exists()
    monkeypatch.setattr(crashes, "_GRACE", timedelta())
    assert mark_crashed(tmp_path) == 1
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(note.name)
    assert run.state is not None
    assert run.state.name == "Crashed"
    assert not note.exists()


def test_a_run_that_awaits_its_retry_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @flow(on_running=[note_process])
    def failing() -> None:
        raise ValueError

    with temporary_settings({PREFECT_HOME: tmp_path}), pytest.raises(ValueError):  # noqa: PT011
        failing()
    (note,) = (tmp_path / "running").iterdir()
    monkeypatch.setattr(processes, "_start_time", lambda pid: "another")
    monkeypatch.setattr(crashes, "_GRACE", timedelta())
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(note.name), AwaitingRetry(), force=True)
        assert mark_crashed(tmp_path) == 0
        run = client.read_flow_run(UUID(note.name))
    assert note.exists()
    assert run.state is not None
    assert run.state.name == "AwaitingRetry"


def test_the_note_of_a_run_that_ended_well_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @flow(on_running=[note_process])
    def done() -> None:
        pass

    with temporary_settings({PREFECT_HOME: tmp_path}):
        done()
    (note,) = (tmp_path / "running").iterdir()
    monkeypatch.setattr(processes, "_start_time", lambda pid: "another")
    assert mark_crashed(tmp_path) == 0
    assert not note.exists()
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(note.name)
    assert run.state is not None
    assert run.state.is_completed()


_LONG = """
import time
from prefect import flow, task
from selu.flows.ledger import Ledger, one_at_a_time
from selu.tasks.progress import meter

@task
def work():
    report = meter("work")
    for step in range(6000):
        if step == 1:
            print("at work", flush=True)
        report(step, 6000)
        time.sleep(0.1)

@flow(task_runner=one_at_a_time(), persist_result=False)
def long():
    with Ledger().stage("rollout") as stage:
        stage.one(work.submit())

long()
"""


def test_a_cancelled_run_stops_what_is_at_work_in_its_threads() -> None:
    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": os.getcwd()}
    with subprocess.Popen([sys.executable, "-c", _LONG], env=environment, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert b"at work" in child.stdout.readline()
        child.send_signal(signal.SIGTERM)  # as Prefect's runner does
        child.wait(timeout=60)
    assert child.returncode != 0


# Task runners


def test_a_runner_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    with pytest.raises(ConfigError, match=r'pip install "selu\[ray\]"'):
        on_chosen_runner(learning_round, OrchestrationSettings(task_runner="ray"))


def test_threads_leave_the_flow_as_it_is() -> None:
    assert on_chosen_runner(learning_round, OrchestrationSettings()) is learning_round


def test_an_address_wants_a_runner_that_goes_there() -> None:
    with pytest.raises(ConfigError, match="set task_runner to dask or ray"):
        load_settings(None, ["orchestration.address=tcp://10.0.0.5:8786"])
