"""The command as its users meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from selu.cli.main import app
from selu.methods import load_methods
from selu.rounds import ROUND_STAGES
from tests.dummy_world import small_settings

ROOT = Path(__file__).parents[2]


def _selu(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def unchanged_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def config(tmp_path: Path, small_model: Path) -> Path:
    """A config file for the dummy world."""
    settings = small_settings(tmp_path / "data", small_model)
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(settings.model_dump(mode="json")))
    return path


# Help and bad input


def test_help_teaches_and_is_light() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from selu.cli.main import app;"
        "say = lambda *words: print(CliRunner().invoke(app, [*words, '--help']).output);"
        "say(); say('round');"
        "heavy = {'torch', 'transformers', 'prefect', 'datasets'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("round", "learn", "evaluate", "compare", "report", "sql", "doctor", "play", "selu round seed=7"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["round", "sede=7"], "sede: unknown setting; did you mean seed?"),
        (["round", "world.widht=3"], "did you mean world.width?"),
        (["round", "tasks.scenes=FloorPlan99"], "no such scene: 'FloorPlan99'"),
        (["round", "tasks.kinds=jump"], "must be one of pick_up"),
        (["round", "--config", "missing.yaml"], "no such config file: missing.yaml"),
        (["sql", "SELECT * FROM nothing"], "nothing does not exist"),
        (["report"], "no finished round"),
        (["compare", "--methods", "selu,lmis"], "no such method: 'lmis'; did you mean lmsi?"),
        (["compare", "--seeds", "0"], "seeds of a comparison must be at least 1, got 0"),
        (["round", "self_asking.by=oracle"], "or neither"),
        (["play", "--policy", "me too"], "--policy must be one of me, planner, random, actor"),
        (["round", "actor.path=/no/such/model"], "actor.path: no such folder"),
        (["round", "actor.engine=vllm", "actor.path=some/model"], "engine=vllm needs vLLM"),
        (
            ["round", "evaluation.three_step_episodes=1000"],
            "three_step_episodes=1000: the frozen set three_steps is enough for 120 at most",
        ),
        (
            ["round", "evaluation.critic_episodes_b=2000"],
            "critic_episodes_b=2000: the frozen set probe_b is enough for 540 at most",
        ),
        (["round", "tasks.instructions={tmp}/empty.txt"], "holds no instruction; expected one a line"),
        (["round", "self_asking.contrasts=5"], "self_asking.contrasts: Input should be a multiple of 4, got 5"),
    ],
)
def test_bad_input_is_one_sentence_and_no_traceback(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    unchanged_environment: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_early() -> None:
        pytest.fail("a server was started before it was refused")

    monkeypatch.setattr("selu.cli.profile.own_server", too_early)
    (tmp_path / "empty.txt").touch()
    done = _selu(*(text.format(tmp=tmp_path) for text in arguments), f"data_dir={tmp_path / 'data'}")
    assert done.exit_code == 2
    assert sentence in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_a_data_folder_that_is_a_file_is_said(tmp_path: Path, unchanged_environment: None) -> None:
    (tmp_path / "data").write_text("")
    done = _selu("round", f"data_dir={tmp_path / 'data'}")
    assert done.exit_code == 2
    assert "is a file, not a folder" in done.output


# A round, and looking at it


@pytest.mark.usefixtures("dummies", "unchanged_environment")
def test_a_round_its_report_and_its_rows(config: Path) -> None:
    done = _selu("round", "--config", config)
    assert done.exit_code == 0, done.output
    assert "selu thor seed 0, round 1" in done.output
    assert "rollout: " in done.output

    again = _selu("round", "--config", config)
    assert again.exit_code == 0, again.output
    assert "rollout: nothing to do, it is in the store" in again.output

    report = _selu("report", "--config", config, "--json")
    figures = json.loads(report.output)
    for who in ("critic", "actor"):
        for phase in ("before", "after"):
            assert set(figures[who][phase]) == {"rate", "n", "ci95"}
            assert len(figures[who][phase]["ci95"]) == 2
    assert {"n", "coverage", "false_rate"} <= set(figures["labels"])
    assert {figures["general"][who]["after"]["n"] for who in ("critic", "actor")} == {20}
    assert list(figures["seconds"]) == list(ROUND_STAGES)
    assert set(figures["digests"]) == {"critic_dataset", "actor_dataset", "critic_adapter", "actor_adapter"}
    assert all(len(digest) == 64 for digest in figures["digests"].values())
    assert figures["cached"] == list(ROUND_STAGES)

    rows = _selu("sql", "SELECT subject, count(*) AS n FROM metrics GROUP BY ALL", "--config", config, "--json")
    counted = {row["subject"]: row["n"] for row in map(json.loads, rows.output.splitlines()) if "subject" in row}
    assert set(counted) == {"actor", "critic", "labels", "general"}

    evaluated = _selu("evaluate", "--config", config, "--json", "evaluation.bootstrap=200")
    assert evaluated.exit_code == 0, evaluated.output
    assert {row["phase"] for row in json.loads(evaluated.stdout)} == {"before", "after"}

    # The adapters of other settings are not these settings'.
    other = _selu("evaluate", "--config", config, "--json", "hindsight.confidence=0.8")
    assert other.exit_code == 0, other.output
    assert {row["phase"] for row in json.loads(other.stdout)} == {"before"}
    assert "No finished round was trained with these settings" in other.stderr


@pytest.mark.usefixtures("dummies", "unchanged_environment")
def test_a_comparison_and_its_table_drawn_again(config: Path, tmp_path: Path) -> None:
    sizes = ["--seeds", "1", "--rounds", "1", "--baseline-seeds", "1", "--baseline-rounds", "1"]
    nothing = _selu("compare", "--config", config, "--draw-only", *sizes)
    assert nothing.exit_code == 0, nothing.output
    readme = tmp_path / "data" / "reports" / "comparison" / "README.md"
    assert f"0 of {len(load_methods())} runs are finished" in readme.read_text()

    done = _selu("compare", "--config", config, "--methods", "selu,without_critic_finetuning", *sizes)
    assert done.exit_code == 0, done.output
    assert "2 of 2 runs are finished" in readme.read_text()

    drawn = _selu("compare", "--config", config, "--draw-only", *sizes, "--out", tmp_path / "out")
    assert drawn.exit_code == 0, drawn.output
    assert "Comparison: " in drawn.output
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"2 of {len(load_methods())} runs are finished" in text
    assert "| without_critic_finetuning | 1 | 1 |" in text
    assert "Not started yet (method and seed): lmsi 0, " in text


@pytest.mark.usefixtures("dummies", "unchanged_environment")
def test_an_episode_can_be_saved_as_a_gif(config: Path, tmp_path: Path) -> None:
    from PIL import Image

    done = _selu("play", "--config", config, "--policy", "planner", "--gif", tmp_path / "film.gif")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames >= 2  # type: ignore[attr-defined]


@pytest.mark.usefixtures("dummies", "unchanged_environment")
def test_the_world_can_be_driven_by_hand(config: Path) -> None:
    done = CliRunner().invoke(app, ["play", "--config", str(config)], input="Open(Fridge)\nDone\n")
    assert done.exit_code == 0, done.output
    assert "open the fridge" in done.output


@pytest.mark.usefixtures("dummies", "unchanged_environment")
def test_the_doctor_looks_at_everything(config: Path, small_model: Path) -> None:
    done = _selu("doctor", "--config", config)
    assert done.exit_code == 0, done.output
    for what in ("Python", "packages", "memory", "GPU", "data", "Prefect", "display and Vulkan", "world"):
        assert f"{what}: " in done.output
    told = _selu("doctor", "--config", config, "--json", "--model", small_model)
    findings = {item["what"]: item for item in json.loads(told.stdout)}
    assert {item["state"] for item in findings.values()} <= {"ok", "note"}
    assert str(small_model) in findings["model of actor and critic"]["text"]


@pytest.mark.usefixtures("dummies", "unchanged_environment")
def test_the_doctor_says_what_is_wrong_and_what_mends_it(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    done = _selu("doctor", "--config", config, "--model", "missing/folder")
    assert done.exit_code == 2
    assert "no server answers at http://127.0.0.1:1/api" in done.output
    assert "unset PREFECT_API_URL" in done.output
    assert "bad  model of actor and critic: " in done.output
    real = _selu("doctor", "--config", config, "world.platform=CloudRendering", "--json")
    monkeypatch.setenv("PATH", "")
    blind = _selu("doctor", "--config", config, "world.platform=CloudRendering", "--json")
    assert {item["what"]: item["mend"] for item in json.loads(blind.stdout)}["Vulkan"] == "apt-get install vulkan-tools"
    assert {item["what"]: item["state"] for item in json.loads(real.stdout)}["Vulkan"] == "bad"


@pytest.mark.usefixtures("dummies", "unchanged_environment")
def test_the_doctor_tries_virtualhome_with_its_own_actions(config: Path) -> None:
    told = _selu("doctor", "--config", config, "--world", "virtualhome", "--json")
    assert told.exit_code == 0, told.output
    assert {item["what"]: item["state"] for item in json.loads(told.stdout)}["world"] == "ok"


@pytest.mark.usefixtures("dummies", "unchanged_environment")
def test_the_doctor_sees_a_world_that_shows_nothing(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.dummy_world import DummyWorld

    monkeypatch.setattr(DummyWorld, "_frame", lambda self: np.zeros((96, 96, 3), dtype=np.uint8))
    done = _selu("doctor", "--config", config)
    assert done.exit_code == 2
    assert "does not render" in done.output


def test_nothing_is_sent_whatever_is_imported_first() -> None:
    code = (
        "import os, selu.config; "
        "print([os.environ[name] for name in "
        "('DO_NOT_TRACK', 'HF_HUB_DISABLE_TELEMETRY', 'PREFECT_SERVER_ANALYTICS_ENABLED')])"
    )
    environment = {"PATH": os.environ["PATH"], "HF_HUB_DISABLE_TELEMETRY": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['1', '0', 'false']"


# Ctrl-C, with a process and a server of its own

_SLOW = """
import sys, time
import pytest
from tests.dummy_world import DummyWorld, install
patch = pytest.MonkeyPatch()
install(patch)
if sys.argv[1] == "slow":
    step = DummyWorld.step
    def slow(self, action):
        print("stepping", flush=True)
        time.sleep(0.3)
        return step(self, action)
    patch.setattr(DummyWorld, "step", slow)
sys.argv = ["selu", "round", "--config", sys.argv[2]]
from selu.cli.main import app
app()
"""


def test_after_ctrl_c_the_next_run_goes_on(config: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PYTHONPATH": str(ROOT), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}

    def start(speed: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _SLOW, speed, str(config)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    stopped = start("slow")
    assert stopped.stdout is not None
    assert any("stepping" in line for line in stopped.stdout), stopped.stderr.read() if stopped.stderr else ""
    time.sleep(0.5)
    os.killpg(stopped.pid, signal.SIGINT)  # as a terminal does: to the command, its server and its players
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, said
    assert "the next run goes on where this one stopped" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "data" / "store" / "tmp").glob("*"))

    finished = start("fast")
    out, said = finished.communicate(timeout=120)
    assert finished.returncode == 0, said
    assert "round 1" in out
    assert (tmp_path / "data" / "prefect" / "prefect.db").exists()
