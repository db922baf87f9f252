"""A model that forgets is found out by the general probe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selu.config import EvaluationSettings, ModelSettings
from selu.errors import ArtifactError
from selu.evaluation import MetricRow
from selu.general_probe import general_questions
from selu.models.base import Prompt, Reply
from selu.rounds import Workspace
from selu.store import read_table
from selu.tasks.general import GeneralRun, answer_general_questions, measure_general
from selu.tasks.stages import Made, Model, Shard

SIZES = EvaluationSettings(general_questions=80, bootstrap=200)
asked: list[str] = []


class KnowingModel:
    """Knows every answer, or, if its name says so, has forgotten what it saw of states."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.right = [row.answer for row in general_questions(80)]

    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int, **options: Any) -> list[Reply]:
        asked.append(self.name)
        return [
            Reply("yes" if self.name == "forgetful" and prompt.text.startswith("Is the") else f" {right}\n", -0.1)
            for prompt, right in zip(prompts, self.right, strict=False)
        ]


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    import selu.models

    asked.clear()
    monkeypatch.setattr(selu.models, "model_revision", lambda settings, adapter: settings.path)
    monkeypatch.setattr(selu.models, "load_model", lambda settings, adapter: KnowingModel(settings.path))


def _answered(workspace: Workspace, name: str, count: int = 80) -> Made:
    model = Model(settings=ModelSettings(path=name))
    made = answer_general_questions.fn(workspace, Shard(stage="general"), model, count)
    # Without an engine, what was in the store comes as Prefect's state.
    return made if isinstance(made, Made) else made.data


def _rows(workspace: Workspace, runs: Sequence[GeneralRun]) -> dict[tuple[str, str, str], MetricRow]:
    made = measure_general.fn(workspace, Shard(stage="figures"), runs, SIZES, "run", 1, 0)
    rows = read_table(workspace.store().path(made.ref) / "metrics.parquet", MetricRow)
    assert {(row.subject, row.probe) for row in rows} == {("general", "A+B")}
    return {(row.method, row.phase, row.metric): row for row in rows}


def test_what_was_forgotten_shows_with_its_intervals(tmp_path: Path) -> None:
    workspace = Workspace(data_dir=tmp_path)
    knows, forgot = _answered(workspace, "knowing").ref, _answered(workspace, "forgetful").ref
    rows = _rows(
        workspace,
        [
            GeneralRun(phase="before", who="actor", answers=knows),
            GeneralRun(phase="before", who="critic", answers=knows),
            GeneralRun(phase="after", who="actor", answers=knows),
            GeneralRun(phase="after", who="critic", answers=forgot),
        ],
    )
    questions = general_questions(80)
    wrong = sum(row.question.startswith("Is the") and row.answer != "yes" for row in questions)
    before, after = rows["critic", "before", "accuracy"], rows["critic", "after", "accuracy"]
    gain = rows["critic", "after", "accuracy_gain"]
    assert before.rate == 1.0
    assert before.low == pytest.approx(0.954, abs=1e-3)  # Wilson's lower bound of 80 of 80
    assert after.rate == pytest.approx(1 - wrong / 80)
    assert gain.rate == pytest.approx(-wrong / 80)
    assert gain.low < gain.rate < gain.high < 0
    assert rows["actor", "after", "accuracy_gain"].rate == 0.0
    assert {row.n for row in rows.values()} == {80}


def test_one_model_in_both_roles_answers_once(tmp_path: Path) -> None:
    workspace = Workspace(data_dir=tmp_path)
    assert _answered(workspace, "knowing").ref == _answered(workspace, "knowing").ref
    assert asked == ["knowing"]
    assert _answered(workspace, "knowing", 40).ref != _answered(workspace, "knowing").ref


def test_without_an_after_there_is_no_gain(tmp_path: Path) -> None:
    workspace = Workspace(data_dir=tmp_path)
    answers = _answered(workspace, "knowing").ref
    rows = _rows(workspace, [GeneralRun(phase="before", who="actor", answers=answers)])
    assert set(rows) == {("actor", "before", "accuracy")}


def test_answers_to_other_questions_are_not_measured(tmp_path: Path) -> None:
    workspace = Workspace(data_dir=tmp_path)
    fewer = _answered(workspace, "knowing", 40).ref
    with pytest.raises(ArtifactError, match="answered another general probe"):
        _rows(workspace, [GeneralRun(phase="before", who="actor", answers=fewer)])
