"""A whole small comparison: what is shared, what is said, and where it goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import selu.flows.comparison
from selu.comparison import plan_comparison
from selu.comparison.runs import read_records
from selu.comparison.writing import draw
from selu.config import Settings
from selu.errors import ArtifactError, ConfigError, TerminalError
from selu.flows.comparison import comparison
from selu.rounds import Round, Workspace, finished_rounds
from selu.store import ArtifactRef
from selu.tasks.comparison import draw_what_counts, records_in
from tests.dummy_world import small_settings

METHODS = ["selu", "self_consistency", "oracle_labels"]
SIZES = {"seeds": 2, "rounds": 1, "baseline_seeds": 1, "baseline_rounds": 1}

pytestmark = pytest.mark.usefixtures("dummies")


def _settings(folder: Path, model: Path) -> Settings:
    return small_settings(folder / "data", model, evaluation={"actor_episodes_b": 0, "critic_episodes_b": 0})


@pytest.fixture(scope="module")
def compared(
    prefect_server: None, small_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, Path, dict[str, Any]]:
    """A comparison in which the second seed of SELU failed: settings, the folder of its copies, and its results."""
    from tests.dummy_world import install

    folder = tmp_path_factory.mktemp("comparison")
    settings = _settings(folder, small_model)
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        learn = selu.flows.comparison.self_learning

        def unlucky(chosen: Settings) -> list[Round]:
            if chosen.seed == 1:
                raise TerminalError(f"{chosen.data_dir}/store is on fire")
            return learn(chosen)

        patch.setattr(selu.flows.comparison, "self_learning", unlucky)
        comparison(settings, METHODS, out=folder / "out", **SIZES)
    return settings, folder / "out", json.loads((folder / "out" / "results.json").read_text())


def _figure(results: dict[str, Any], method: str, measure: str, probe: str = "") -> dict[str, Any]:
    wanted = {"method": method, "measure": measure, "probe": probe, "kind": "all"}
    (row,) = [row for row in results["rows"] if wanted.items() <= row.items()]
    return dict(row)


def test_methods_differ_as_they_should(compared: tuple[Settings, Path, dict[str, Any]]) -> None:
    _, _, results = compared
    assert _figure(results, "base model", "critic", "A")["rate"] == 0.5
    assert _figure(results, "self-asking, untrained", "critic", "A")["rate"] == 1.0
    assert _figure(results, "planner", "actor", "A")["rate"] == 1.0
    for method in ("selu", "oracle_labels"):
        assert _figure(results, method, "critic_gain", "A")["rate"] == 0.5
        assert _figure(results, method, "false_rate")["rate"] == 0.0
    # Its critic is never trained, and votes at random.
    assert _figure(results, "self_consistency", "critic_gain", "A")["rate"] == 0.0
    assert _figure(results, "self_consistency", "critic_beside_selu", "A")["rate"] == -0.5
    assert _figure(results, "self_consistency", "false_rate")["rate"] > 0
    for method in METHODS:
        assert _figure(results, method, "environment_steps")["rate"] >= 12
        assert _figure(results, method, "tokens_trained")["rate"] > 0
    trained = {method: _figure(results, method, "tokens_trained")["rate"] for method in METHODS}
    assert trained["self_consistency"] < trained["oracle_labels"]


def test_a_failed_run_is_said_and_stops_no_other(compared: tuple[Settings, Path, dict[str, Any]]) -> None:
    settings, out, results = compared
    states = {(run["method"], run["seed"]): (run["state"], run["said"]) for run in results["runs"]}
    assert states == {
        ("selu", 0): ("finished", ""),
        ("self_consistency", 0): ("finished", ""),
        ("oracle_labels", 0): ("finished", ""),
        ("selu", 1): ("failed", "data_dir/store is on fire"),
    }
    readme = (out / "README.md").read_text()
    assert "3 of 4 runs are finished, 1 failed" in readme
    assert "| selu | 1 | failed | 0 of 1 | data_dir/store is on fire |" in readme
    assert str(settings.data_dir) not in readme


def test_the_files_are_there_and_hold_the_same(compared: tuple[Settings, Path, dict[str, Any]]) -> None:
    _, out, results = compared
    for name in ("learning_curves.png", "methods.png", "beside_selu.png", "false_labels.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in (out / "README.md").read_text()
    with (out / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results["rows"])
    assert [row["measure"] for row in rows] == [row["measure"] for row in results["rows"]]


def test_methods_share_the_first_rollout_and_the_base_models_evaluation(
    compared: tuple[Settings, Path, dict[str, Any]],
) -> None:
    settings, _, _ = compared
    store = Workspace.of(settings).store()
    rounds = {item.settings.method: item for item in finished_rounds(store)}
    assert len({rounds[method].episodes for method in METHODS}) == 1
    probed = {
        ref["key"]: store.manifest(ArtifactRef.model_validate(ref)).provenance
        for method in METHODS
        for metric in rounds[method].metrics
        for ref in store.manifest(metric).provenance["inputs"]
        if ref["kind"] == "probe_judgements"
    }
    # One of the base critic, whoever judged what was learned from, and one of each of the two critics that were trained.
    assert len([made for made in probed.values() if "self_asking" in made["config"]]) == 3
    assert "labels_by_truth" in {ref.kind for ref in rounds["oracle_labels"].judgements}
    for method in ("selu", "self_consistency"):
        assert {ref.kind for ref in rounds[method].judgements} == {"judgements"}
    untrained = rounds["self_consistency"]
    assert (untrained.critic_dataset, untrained.critic_adapter) == (None, None)
    assert untrained.revisions["critic_after"] == untrained.revisions["critic_before"]
    assert untrained.revisions["actor_after"] != untrained.revisions["actor_before"]


def test_run_again_it_makes_what_was_missing_and_draws_the_same_of_the_rest(
    compared: tuple[Settings, Path, dict[str, Any]], small_model: Path, tmp_path: Path
) -> None:
    import shutil

    settings, _, before = compared
    shutil.copytree(settings.data_dir, tmp_path / "data")
    settings = settings.model_copy(update={"data_dir": tmp_path / "data"})
    readme = comparison(settings, METHODS, **SIZES)
    results = json.loads((readme.parent / "results.json").read_text())
    assert {run["state"] for run in results["runs"]} == {"finished"}
    assert _figure(results, "selu", "actor", "A")["n"] == 2 * _figure(before, "selu", "actor", "A")["n"]
    for method in ("self_consistency", "oracle_labels"):
        assert [row for row in results["rows"] if row["method"] == method] == [
            row for row in before["rows"] if row["method"] == method
        ]
    # Drawn alone, without running anything, it is the same.
    again, _ = draw(Workspace.of(settings), plan_comparison(settings, METHODS, **SIZES))
    assert json.loads((again.parent / "results.json").read_text()) == results


def test_where_nothing_works_the_reason_is_raised(small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match=r"lacks config\.json"):
        comparison(small_settings(tmp_path / "data", tmp_path / "model"), ["selu"], seeds=1, rounds=1)


def test_a_record_of_a_run_counts_where_the_run_was_never_made(
    compared: tuple[Settings, Path, dict[str, Any]], small_model: Path, tmp_path: Path
) -> None:
    import shutil

    _, out, before = compared
    shutil.copytree(out, tmp_path / "out")
    elsewhere = _settings(tmp_path, small_model)
    with pytest.MonkeyPatch.context() as patch:
        made: list[tuple[str, int]] = []
        learn = selu.flows.comparison.self_learning

        def counted(chosen: Settings) -> list[Round]:
            made.append((chosen.method, chosen.seed))
            return learn(chosen)

        patch.setattr(selu.flows.comparison, "self_learning", counted)
        comparison(elsewhere, METHODS, out=tmp_path / "out", **SIZES)
    assert made == [("selu", 1)]  # the one that had failed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {run["state"] for run in results["runs"]} == {"finished"}
    assert len(list((tmp_path / "out/runs").glob("*/run.json"))) == 4
    for method in ("self_consistency", "oracle_labels"):
        assert [row for row in results["rows"] if row["method"] == method] == [
            row for row in before["rows"] if row["method"] == method
        ]
    for path in (tmp_path / "out/runs").glob("*/run.json"):
        assert not any(str(folder) in path.read_text() for folder in (tmp_path, out.parent, small_model))


def test_a_record_of_another_recipe_does_not_count(
    compared: tuple[Settings, Path, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    settings, out, _ = compared
    workspace, plan = Workspace.of(settings), plan_comparison(settings, METHODS, **SIZES)
    shutil.copytree(out / "runs", tmp_path / "runs")
    assert len(records_in(workspace, plan, tmp_path)) == 3
    facts = next((tmp_path / "runs").glob("selu-*/run.json"))
    sound = json.loads(facts.read_text())
    assert {"hindsight", "critic-metrics", "prompts"} <= set(sound["recipe"])
    for changed, said in (
        ({"recipe": sound["recipe"] | {"critic-metrics": 99}}, "critic-metrics"),
        ({"recipe": sound["recipe"] | {"prompts": "others"}}, "prompts"),
        ({"recipe": sound["recipe"] | {"replay": "of another corpus"}}, "replay"),
        ({"base_models": sound["base_models"] | {"actor": "another"}}, "base model of the actor"),
    ):
        facts.write_text(json.dumps(sound | changed))
        assert len(records_in(workspace, plan, tmp_path)) == 2
        assert f"it was made with another {said}" in caplog.text
    for broken in ("{", json.dumps(sound | {"budgets": []})):
        facts.write_text(broken)
        with pytest.raises(ArtifactError, match="delete that folder, or fetch it again"):
            records_in(workspace, plan, tmp_path)


@pytest.mark.parametrize("changes", [{}, {"seed": 7}, {"name": "another"}])
def test_a_comparison_of_other_settings_is_not_overwritten(
    compared: tuple[Settings, Path, dict[str, Any]], changes: dict[str, Any]
) -> None:
    settings, out, _ = compared
    other = settings.model_copy(update={"tasks": settings.tasks.model_copy(update={"episodes": 9}), **changes})
    with pytest.raises(ConfigError, match=r"holds the comparison of other settings .* give its settings"):
        records_in(Workspace.of(other), plan_comparison(other, METHODS, **SIZES), out)


def test_other_seeds_and_methods_may_join_a_comparison(compared: tuple[Settings, Path, dict[str, Any]]) -> None:
    settings, out, _ = compared
    later = settings.model_copy(update={"seed": 7})
    assert records_in(Workspace.of(later), plan_comparison(later, ["self_refine"], **SIZES), out) == {}


def test_what_older_code_made_is_neither_drawn_nor_overwrites_anything(
    compared: tuple[Settings, Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import shutil

    import selu.tasks.comparison
    from selu.tasks.planning import all_stages

    settings, out, _ = compared
    shutil.copytree(out, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    raised = [
        stage.model_copy(update={"version": 99}) if stage.name == "critic-metrics" else stage for stage in all_stages()
    ]
    monkeypatch.setattr(selu.tasks.comparison, "all_stages", lambda: raised)
    plan = plan_comparison(settings, METHODS, **SIZES)
    readme, drawn = draw_what_counts(Workspace.of(settings), plan, tmp_path / "out")
    assert {state.rounds for state in drawn.states} == {0}
    assert "what the store holds of" in caplog.text
    assert "its tables are left as they are" in caplog.text
    assert readme.parent != tmp_path / "out"
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_drawing_fewer_rounds_costs_no_record_any(
    compared: tuple[Settings, Path, dict[str, Any]], tmp_path: Path
) -> None:
    import shutil

    settings, out, _ = compared
    shutil.copytree(out / "runs", tmp_path / "runs")
    key = plan_comparison(settings, METHODS, **SIZES).runs[0].key
    record = read_records(tmp_path / "runs")[key]
    more = record.model_copy(
        update={"rounds": 2, "digests": record.digests * 2, "budgets": record.budgets * 2}  # as another machine had it
    )
    more.write(tmp_path / "runs" / key)
    workspace, plan = Workspace.of(settings), plan_comparison(settings, METHODS, **SIZES)
    _, drawn = draw(workspace, plan, tmp_path, records_in(workspace, plan, tmp_path))
    assert {state.rounds for state in drawn.states if state.method == "selu" and state.seed == 0} == {1}
    assert read_records(tmp_path / "runs")[key].rounds == 2
