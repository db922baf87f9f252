"""How runs are operated: approval, slots, cancellation, crashes, other task runners."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
from prefect.client.schemas.objects import FlowRun
from prefect.concurrency.sync import concurrency
from prefect.flow_runs import resume_flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry

from selu import processes
from selu.config import OrchestrationSettings, Settings, load_settings
from selu.errors import ConfigError
from selu.flows import crashes
from selu.flows.approval import check_somebody_can_approve
from selu.flows.crashes import mark_crashed, note_process
from selu.flows.learning_round import learning_round
from selu.flows.ledger import on_chosen_runner
from selu.housekeeping import forget_from
from selu.rounds import Workspace
from selu.tasks import stages
from selu.tasks.checks import check_models
from selu.tasks.stages import Shard
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

    # Their word is a part of the stage: made again, it is asked for again.
    store = Workspace.of(settings).store()
    forget_from(store, again, "actor_finetuning")
    person = _Person({"actor": True})
    person.start()
    try:
        assert learning_round(settings).actor_adapter is not None
    finally:
        person.ended.set()
        person.join()
    assert person.seen == ["actor"]


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


def test_what_keeps_a_gpu_busy_waits_for_a_slot_while_rollouts_go_on(
    slot: str, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(tmp_path, small_model, orchestration={"gpu_slot": slot})
    taken, waited = threading.Event(), threading.Event()
    said: list[str] = []
    there: set[str] = set()

    def say(text: str) -> None:
        said.append(text)
        waited.set()

    def another_run(url: str | None) -> None:
        with temporary_settings({PREFECT_API_URL: url}), concurrency(slot, strict=True):
            taken.set()
            assert waited.wait(60)
            there.update(ref.kind for ref in Workspace.of(settings).store().all())

    monkeypatch.setattr(stages, "say", say)
    monkeypatch.setattr(stages, "_LOOKS_EVERY", 1.0)
    other = threading.Thread(target=another_run, args=(PREFECT_API_URL.value(),))
    other.start()
    assert taken.wait(30)
    made = learning_round(settings)
    other.join()
    assert there == {"episodes", "frames"}, "judging has not begun"
    assert said == [f"self-asking 1/3: all slots of {slot} are taken, waiting for one"]
    assert made.critic_adapter is not None
    with get_client(sync_client=True) as client:
        assert client.read_global_concurrency_limit_by_name(slot).active_slots == 0


def test_who_waits_for_a_slot_can_be_stopped(slot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def interrupted() -> bool:
        asked.append(True)
        return len(asked) > 1

    monkeypatch.setattr(stages, "interrupted", interrupted)
    monkeypatch.setattr(stages, "_LOOKS_EVERY", 1.0)
    with (
        concurrency(slot, strict=True),
        pytest.raises(KeyboardInterrupt),
        stages._occupied(slot, Shard(stage="waiting")),
    ):
        raise AssertionError("there is only one slot")


# Crashes and cancellation


_STUCK = """
import sys, time
from prefect import flow, task
from selu.config import Settings
from selu.flows.crashes import note_process

@task
def work():
    print("at work", flush=True)
    time.sleep(600)

@flow(on_running=[note_process], persist_result=False)
def stuck(settings: Settings):
    work()

stuck(Settings(data_dir=sys.argv[1]))
"""


def test_a_run_whose_process_is_killed_is_shown_as_crashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = PREFECT_API_URL.value()
    assert url is not None
    environment = {
        **os.environ,
        "PREFECT_API_URL": url,
        "PREFECT_HOME": str(tmp_path / "elsewhere"),
        "PYTHONPATH": os.getcwd(),
    }
    with subprocess.Popen(
        [sys.executable, "-c", _STUCK, str(tmp_path)], env=environment, stdout=subprocess.PIPE
    ) as child:
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
    def failing(settings: Settings) -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        failing(Settings(data_dir=tmp_path))
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
    def done(settings: Settings) -> None:
        pass

    done(Settings(data_dir=tmp_path))
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
