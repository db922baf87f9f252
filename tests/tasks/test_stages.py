"""What all stages share, and what watches over their versions."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import shutil
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect import Task
from pydantic import BaseModel

import selu.tasks
from selu.config import ModelSettings, TaskKind, WorldSettings
from selu.errors import ArtifactError, ConfigError, TransientError
from selu.memory import Memory
from selu.records import Episode
from selu.records import Task as HouseholdTask
from selu.rounds import Workspace
from selu.store import OracleRef, read_table
from selu.tasks.evaluation import balanced_choice
from selu.tasks.progress import LineDisplay, meter, shown_on
from selu.tasks.rollout import PolicyChoice, freeze_probe
from selu.tasks.stages import (
    ENGINE,
    Made,
    MadeWithTruth,
    Model,
    Shard,
    Stage,
    make,
    make_with_truth,
    model_config_of,
    shards,
    world_config_of,
)
from tests.tasks.stage_versions import RECORDED, all_stages, code_digest

STAGE = Stage(name="test", version=1, modules=())


def _write(text: str):  # type: ignore[no-untyped-def]
    def compute(path: Path, report: object) -> None:
        (path / "text.txt").write_text(text)

    return compute


def _make(workspace: Workspace, text: str = "a", **changes: object) -> Made:
    stage = STAGE.model_copy(update={"version": changes.pop("version", 1)})
    arguments: dict[str, object] = {"config": {"x": 1}, **changes}
    return make(workspace, stage, Shard(stage="test"), "things", _write(text), **arguments)  # type: ignore[arg-type]


def test_what_is_in_the_store_is_not_made_again(tmp_path: Path) -> None:
    workspace = Workspace(data_dir=tmp_path)
    first, second = _make(workspace), _make(workspace, "b")
    assert not first.cached
    assert second.cached
    assert second.ref == first.ref
    assert second.seconds > 0


def test_another_version_config_or_input_is_another_artifact(tmp_path: Path) -> None:
    workspace = Workspace(data_dir=tmp_path)
    first = _make(workspace)
    keys = {
        first.ref.key,
        _make(workspace, version=2).ref.key,
        _make(workspace, config={"x": 2}).ref.key,
        _make(workspace, inputs=[first.ref]).ref.key,
    }
    assert len(keys) == 4


def test_an_altered_input_is_refused_before_work_starts(tmp_path: Path) -> None:
    workspace = Workspace(data_dir=tmp_path)
    first = _make(workspace)
    (workspace.store().path(first.ref) / "text.txt").write_text("b")
    with pytest.raises(ArtifactError, match=r"text\.txt is altered"):
        _make(workspace, inputs=[first.ref])


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    workspace = Workspace(data_dir=tmp_path)

    def fail(path: Path, report: object) -> None:
        (path / "half.txt").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        make(workspace, STAGE, Shard(stage="test"), "things", fail, config={})
    assert not [path for path in workspace.store_root.rglob("*") if path.is_file()]


def _make_pair(workspace: Workspace, said: str, true: str) -> MadeWithTruth:
    def compute(path: Path, report: object) -> Callable[[Path], None]:
        def write_truth(sealed: Path) -> None:
            (sealed / "true.txt").write_text(true)

        (path / "said.txt").write_text(said)
        return write_truth

    return make_with_truth(workspace, STAGE, Shard(stage="test"), ("things", "oracle"), compute, config={})


def _texts(workspace: Workspace, made: MadeWithTruth) -> tuple[str, str]:
    store = workspace.store()
    return (store.path(made.ref) / "said.txt").read_text(), (store.path(made.oracle) / "true.txt").read_text()


@pytest.mark.parametrize("lost", ["ref", "oracle"])
def test_half_of_a_pair_is_no_pair(lost: str, tmp_path: Path) -> None:
    workspace = Workspace(data_dir=tmp_path)
    first = _make_pair(workspace, "a", "about a")
    assert _make_pair(workspace, "b", "about b").cached
    shutil.rmtree(workspace.store().path(getattr(first, lost)))
    again = _make_pair(workspace, "a", "about a")
    assert not again.cached
    assert (again.ref, again.oracle) == (first.ref, first.oracle)


@pytest.mark.parametrize("lost", ["ref", "oracle"])
def test_truth_is_never_taken_for_that_about_other_bytes(lost: str, tmp_path: Path) -> None:
    workspace = Workspace(data_dir=tmp_path)
    shutil.rmtree(workspace.store().path(getattr(_make_pair(workspace, "a", "about a"), lost)))
    with pytest.raises(TransientError):
        _make_pair(workspace, "b", "about b")
    assert _texts(workspace, _make_pair(workspace, "c", "about c")) == ("c", "about c")
    assert _make_pair(workspace, "d", "about d").cached


def test_a_model_that_acts_is_keyed_by_its_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    acting = PolicyChoice(model=Model(settings=ModelSettings()))
    before, scripted = acting.config(), PolicyChoice(kind="planner").config()
    monkeypatch.setattr("selu.tasks.rollout.prompts_digest", lambda: "others")
    assert acting.config() != before
    assert PolicyChoice(kind="planner").config() == scripted


def test_an_actor_is_keyed_by_what_it_remembers() -> None:
    memories = Memory(history=4), Memory(history=4, remember="interactions"), Memory(history=3)
    assert len({json.dumps(PolicyChoice(memory=memory).config()) for memory in memories}) == 3


def test_a_probe_has_the_practised_kinds_in_turn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    workspace = Workspace(data_dir=tmp_path)

    def kinds(count: int, *wanted: TaskKind) -> list[str]:
        made = freeze_probe.fn(workspace, Shard(stage="tasks"), "probe_a", count, wanted)
        tasks = read_table(workspace.store().path(made.oracle) / "tasks.parquet", HouseholdTask)
        assert len(tasks) == made.count
        return [task.kind for task in tasks]

    assert kinds(6, "open", "pick_up") == ["pick_up", "open"] * 3
    assert kinds(100, "slice") == ["slice"] * 60
    assert "60 tasks of the kinds slice, all of which are taken; 100 were asked for" in caplog.text
    with pytest.raises(ConfigError, match="has 540 tasks, 541 were asked for"):
        kinds(541, "open")


def test_shards_cover_everything_once() -> None:
    parts = shards("rollout", 12, 5)
    assert [(part.start, part.stop) for part in parts] == [(0, 5), (5, 10), (10, 12)]
    assert [str(part) for part in parts] == ["rollout 1/3", "rollout 2/3", "rollout 3/3"]
    assert [str(part) for part in shards("frames", 5, 5)] == ["frames"]


def test_patience_and_batch_size_are_not_part_of_a_result() -> None:
    assert world_config_of(WorldSettings(step_timeout=9)) == world_config_of(WorldSettings())
    assert world_config_of(WorldSettings(width=64)) != world_config_of(WorldSettings())


def test_the_code_of_a_world_of_ones_own_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "my_own_world.py"
    module.write_text("class Mine: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = WorldSettings(name="my_own_world:Mine")
    before = world_config_of(settings)
    module.write_text("class Mine: ...  # another\n")
    assert world_config_of(settings) != before
    assert model_config_of(ModelSettings(batch_size=1)) == model_config_of(ModelSettings())
    assert model_config_of(ModelSettings(device="cuda:1")) == model_config_of(ModelSettings(device="cuda"))
    assert model_config_of(ModelSettings(device="cuda")) != model_config_of(ModelSettings())
    assert model_config_of(ModelSettings(threads=1)) != model_config_of(ModelSettings())
    assert model_config_of(ModelSettings(max_new_tokens=5)) != model_config_of(ModelSettings())


def test_ground_truth_is_no_artifact_reference() -> None:
    truth = OracleRef(kind="oracle", key="0a", digest="")
    with pytest.raises(ValueError, match="kind"):
        Made.model_validate({"ref": truth.model_dump(), "cached": False, "seconds": 0.0})


def test_only_evaluation_is_given_ground_truth() -> None:
    takes_truth: dict[str, set[str]] = {}
    for module in pkgutil.iter_modules(selu.tasks.__path__, "selu.tasks."):
        loaded = importlib.import_module(module.name)
        for task in vars(loaded).values():
            if isinstance(task, Task) and task.fn.__module__ == module.name:
                hints = typing.get_type_hints(inspect.unwrap(task.fn))
                hints.pop("return", None)
                taken = {name for name, hint in hints.items() if "OracleRef" in str(hint) or _holds_truth(hint)}
                if taken:
                    takes_truth.setdefault(module.name, set()).update(taken)
    # The world must know where an episode starts, and what for. A finished round names its ground truth for the reader
    # of its report.
    assert takes_truth.pop("selu.tasks.rollout") == {"tasks"}
    assert takes_truth.pop("selu.tasks.reporting") == {"finished"}
    # The upper bound of a comparison, which no settings reach by accident (tests/tasks/test_oracle_labels.py).
    assert takes_truth.pop("selu.tasks.oracle_labels") == {"oracle"}
    assert set(takes_truth) == {"selu.tasks.evaluation"}


def _holds_truth(hint: object) -> bool:
    inside = typing.get_args(hint) or (hint,)
    return any(
        isinstance(part, type)
        and issubclass(part, BaseModel)
        and any("OracleRef" in str(field.annotation) for field in part.model_fields.values())
        for part in inside
    )


def _episode(name: str) -> Episode:
    return Episode(
        episode_id=name, task_id=name, scene="FloorPlan21", instruction="open the fridge", seed=0, policy="random",
        length=1, finish_reason="done",
    )  # fmt: skip


def test_a_critics_probe_is_balanced_and_mixes_policies() -> None:
    candidates = {
        "planner": [_episode(f"p{number}") for number in range(10)],
        "noisy planner": [_episode(f"n{number}") for number in range(10)],
        "random": [_episode(f"r{number}") for number in range(10)],
    }
    success = {
        name: name[0] == "p" or (name[0] == "n" and int(name[1]) < 5)
        for rows in candidates.values()
        for name in [row.episode_id for row in rows]
    }
    chosen = balanced_choice(candidates, success, 12, seed=0)
    assert sum(success[row.episode_id] for row in chosen) == 6
    assert sum(row.episode_id[0] == "n" and success[row.episode_id] for row in chosen) == 3
    assert sum(row.episode_id[0] == "n" and not success[row.episode_id] for row in chosen) == 3
    assert chosen == balanced_choice(candidates, success, 12, seed=0)


def test_a_scarce_half_cuts_the_other() -> None:
    candidates = {"planner": [_episode(f"p{number}") for number in range(10)], "random": [_episode("r0")]}
    success = {row.episode_id: row.episode_id[0] == "p" for rows in candidates.values() for row in rows}
    assert len(balanced_choice(candidates, success, 8, seed=0)) == 2


def test_progress_is_silent_unless_somebody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    meter("rollout")(1, 2)
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_progress_is_plain_lines() -> None:
    from io import StringIO

    from rich.console import Console

    said = StringIO()
    with shown_on(Console(file=said, width=100)):
        from selu.tasks import progress

        assert isinstance(progress._display, LineDisplay)
        progress._display.every = 0.0
        for done in (1, 2):
            meter("rollout", index=1, count=3, start=5, whole=12)(done, 5)
        progress.finished("rollout", 1.5, 1, 3)
        assert not progress._display._started, "the next round has a stage of the same name, and its own rate"
    assert "rollout: 7 of 12, shard 2/3" in said.getvalue()
    assert "s left" in said.getvalue()
    assert "\x1b" not in said.getvalue()


def test_what_goes_on_counts_only_what_it_did_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from io import StringIO

    from rich.console import Console

    from selu.tasks import progress

    said, now = StringIO(), [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with shown_on(Console(file=said, width=100)):
        assert isinstance(progress._display, LineDisplay)
        progress._display._said = 0.0
        # As a job does: a word before it begins, and then from its checkpoint on.
        # Rows that come all at once, as players do that ended together, tell no rate.
        steps = ((0, 1, 90.0), (450, 900, 100.0), (451, 900, 100.001), (460, 900, 125.0))
        for done, total, seconds in steps:
            now[0] = seconds
            meter("critic finetuning")(done, total)
    assert said.getvalue() == "critic finetuning: 460 of 900, shard 1/1, 0.4/s, 1100 s left\n"


def test_every_stage_is_watched() -> None:
    assert {stage.name for stage in all_stages()} == set(json.loads(RECORDED.read_text()))


def test_a_stage_that_asks_a_model_is_watched_with_the_engine() -> None:
    watched = {stage.name for stage in all_stages() if set(ENGINE) <= set(stage.modules)}
    assert watched == {stage.name for stage in all_stages() if stage.on_gpu} | {"rollout"}


@pytest.mark.parametrize("stage", all_stages(), ids=lambda stage: stage.name)
def test_a_stage_whose_code_changed_has_another_version(stage: Stage) -> None:
    recorded = json.loads(RECORDED.read_text())[stage.name]
    assert [stage.version, code_digest(stage)] == [recorded["version"], recorded["code"]], (
        f"the code behind the stage {stage.name!r} has changed. If its result changes for equal inputs, raise its "
        "version in tasks/. Then record it: python -m tests.tasks.stage_versions"
    )
