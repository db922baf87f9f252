"""What a plan says beforehand is what a run then does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from selu.config import Settings
from selu.flows.learning_round import learning_round
from selu.rounds import Round, Workspace
from selu.tasks.planning import memory_of, plan
from tests.dummy_world import small_settings


@pytest.fixture(scope="module")
def finished(
    prefect_server: None, small_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, Round]:
    from tests.dummy_world import install

    settings = small_settings(tmp_path_factory.mktemp("planned"), small_model)
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        return settings, learning_round(settings)


@pytest.mark.usefixtures("dummies")
@pytest.mark.parametrize(
    ("section", "change", "first"),
    [
        ("evaluation", {"bootstrap": 90}, "evaluation"),
        ("actor_finetuning", {"learning_rate": 0.004}, "actor_finetuning"),
        ("world", {"start_timeout": 61.0}, None),
    ],
)
def test_what_is_planned_is_what_happens(
    finished: tuple[Settings, Round], tmp_path: Path, section: str, change: dict[str, Any], first: str | None
) -> None:
    settings, _ = finished
    shutil.copytree(settings.data_dir, tmp_path / "data")
    changed = getattr(settings, section).model_copy(update=change)
    settings = settings.model_copy(update={section: changed, "data_dir": tmp_path / "data"})
    planned = {item.name: item for item in plan(settings)}
    made = {stage.name: not stage.cached for stage in learning_round(settings).stages}
    for name, item in planned.items():
        assert item.state != "found" or not made[name], f"{name} was to be found"
        assert item.state != "made" or made[name], f"{name} was to be made"
    assert [name for name, item in planned.items() if item.state == "made"] == ([first] if first else [])
    if first:
        assert f"{section}.{next(iter(change))}: " in planned[first].why


def test_a_round_from_before_a_setting_was_there_did_without_it(finished: tuple[Settings, Round]) -> None:
    _, made = finished
    data = json.loads(made.model_dump_json())
    del data["settings"]["rollout"]["remember"], data["settings"]["dataset"]["corpus_pictures"]
    then = Round.model_validate_json(json.dumps(data)).settings
    assert (then.rollout.remember, then.dataset.corpus_pictures) == ("last", 0)


def test_a_plan_tells_of_what_is_missing_and_what_was_never_run(finished: tuple[Settings, Round]) -> None:
    settings, made = finished
    store = Workspace.of(settings).store()
    store.set_aside(made.critic_dataset)  # type: ignore[arg-type]
    planned = plan(settings.model_copy(update={"rounds": 2}))
    assert next((item.name, item.why) for item in planned if item.state == "made") == (
        "critic_dataset",
        "1 of 1 artifacts are no longer there",
    )
    assert all(item.why == "no round 2 is finished yet" and item.seconds is not None for item in planned[9:])
    assert 500 < memory_of(settings) < 10_000


def test_the_time_of_a_stage_grows_with_its_size(finished: tuple[Settings, Round]) -> None:
    settings, made = finished
    changes = {
        "tasks": settings.tasks.model_copy(update={"episodes": 24}),
        "actor_finetuning": settings.actor_finetuning.model_copy(update={"max_steps": 6}),
    }
    planned = {item.name: item.seconds for item in plan(settings.model_copy(update=changes))}
    for name, times in (("rollout", 2), ("actor_finetuning", 3), ("critic_finetuning", 1), ("evaluation", 1)):
        assert planned[name] == pytest.approx(times * made.stage(name).made_in_seconds)


def test_with_nothing_to_compare_with_everything_is_made(tmp_path: Path, small_model: Path) -> None:
    planned = plan(small_settings(tmp_path / "data", small_model))
    assert {item.state for item in planned} == {"made"}
    assert {item.seconds for item in planned} == {None}
    assert not (tmp_path / "data").exists()
