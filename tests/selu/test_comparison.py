"""Figures over several seeds: what is pooled, what is paired, and what is said of runs that are not there yet."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from selu.comparison import (
    GAIN,
    Comparison,
    ComparisonRow,
    _differences,
    _measured,
    _Place,
    compare,
    plan_comparison,
    runs_of,
)
from selu.comparison.runs import SPENT, RunRecord, _budgets
from selu.comparison.writing import _write
from selu.config import Settings, validate_settings
from selu.errors import ArtifactError, ConfigError
from selu.evaluation import ItemOutcome, Series
from selu.rounds import Workspace, run_folder
from selu.statistics import Rate
from selu.store import Store

Outcomes = dict[tuple[str, str, str, str], ItemOutcome]
Rows = dict[tuple[str, str], ComparisonRow]
ACTOR = [("actor", "actor", "selu", ("A",))]
CRITIC = [("critic", "critic", "direct", ("A",))]


def _items(subject: str, method: str, values: list[float], truth: list[bool] | None = None) -> Outcomes:
    """Item i in scene i % 3; each fourth is a two-step task."""
    series = Series("run", 1, subject, "after", "A", method)  # type: ignore[arg-type]
    rows = [
        series.outcome(
            f"item {index}",
            f"FloorPlan{index % 3}",
            "open" if index % 4 else "two_step",
            value,
            None if truth is None else truth[index],
        )
        for index, value in enumerate(values)
    ]
    return {(row.subject, row.probe, row.method, row.item): row for row in rows}


def _rows(seeds: list[Outcomes], base: Outcomes, measures: list[tuple[str, str, str, tuple[str, ...]]]) -> Rows:
    """What runs came to, and how much more than the base model."""
    place = _Place("selu", "method", 1, len(seeds))
    more = _differences(place, [(seed, base) for seed in seeds], GAIN, "the base model", 200, measures)
    return _figures([*_measured(place, seeds, 200, measures), *more])


def _figures(rows: list[ComparisonRow]) -> Rows:
    return {(row.measure, row.kind): row for row in rows}


def test_all_seeds_are_pooled_and_gains_are_paired_item_by_item() -> None:
    base = _items("actor", "selu", [0, 0, 1, 1, 0, 0, 0, 1])
    seeds = [_items("actor", "selu", values) for values in ([1, 0, 1, 1, 1, 0, 0, 1], [0, 0, 1, 0, 0, 1, 0, 1])]
    rows = _rows(seeds, base, ACTOR)
    assert (rows["actor", "all"].rate, rows["actor", "all"].n) == (8 / 16, 16)
    assert rows["actor_gain", "all"].rate == pytest.approx((2 + 0) / 16)
    assert rows["actor_gain", "all"].low <= rows["actor_gain", "all"].rate <= rows["actor_gain", "all"].high
    # Items 0 and 4 are the two-step ones.
    assert (rows["actor", "two_step"].rate, rows["actor", "two_step"].n) == (2 / 4, 4)
    assert rows["actor_gain", "two_step"].rate == 0.5
    assert (rows["actor", "one_step"].n, rows["actor_gain", "one_step"].rate) == (12, pytest.approx(0.0))


def test_a_critic_is_measured_by_balanced_accuracy_in_every_part_of_the_probe() -> None:
    truth = [True, True, True, True, True, True, False, False]
    yes = _items("critic", "direct", [float(done) for done in truth], truth)
    base = _items("critic", "direct", [0.5] * 8, truth)
    rows = _rows([yes], base, CRITIC)
    # Always yes: six of eight are right, and yet it is a guess.
    assert rows["critic", "all"].rate == 0.5
    assert rows["critic_gain", "all"].rate == 0.0


def test_outcomes_that_are_all_alike_have_the_interval_of_as_many_items_as_there_are() -> None:
    none = _items("actor", "selu", [0.0] * 8)
    rows = _rows([none, none], none, ACTOR)
    assert (rows["actor", "all"].n, rows["actor", "all"].low) == (16, 0.0)
    # Wilson's of 0 of 8: the second seed met no others.
    assert rows["actor", "all"].high == pytest.approx(0.324, abs=0.001)
    assert math.isnan(rows["actor_gain", "all"].low)
    assert math.isnan(rows["actor_gain", "all"].high)


def test_a_method_that_is_named_twice_runs_once() -> None:
    plan = plan_comparison(Settings(), ["selu", "selu"], seeds=2)
    assert [(run.method, run.settings.seed) for run in plan.runs] == [("selu", 0), ("selu", 1)]


def test_an_item_that_the_base_never_met_gives_no_gain() -> None:
    base = _items("actor", "selu", [0, 0, 1])
    after = _items("actor", "selu", [0, 0, 1, 1])
    with pytest.raises(ArtifactError, match=r"1 items of probe A \(item 3\) were never given to the base model"):
        _rows([after], base, ACTOR)


def _record(key: str, rounds: list[list[float]]) -> RunRecord:
    """A run of which nothing is known but the actor: of the base model, and after each round."""
    outcomes = [
        row.model_copy(update={"round": max(number, 1), "phase": "after" if number else "before"})
        for number, values in enumerate(rounds)
        for row in _items("actor", "selu", values).values()
    ]
    learned = len(rounds) - 1
    return RunRecord(
        key=key,
        rounds=learned,
        stopped=None,
        base_models={},
        digests=({},) * learned,
        budgets=(dict.fromkeys(SPENT, 1.0),) * learned,
        recipe={},
        outcomes=tuple(outcomes),
        metrics=(),
    )


def test_a_method_is_beside_the_run_of_selu_that_has_its_seed_and_as_many_rounds() -> None:
    plan = plan_comparison(Settings(), ["selu", "lmsi"], seeds=3, rounds=2, baseline_seeds=2, baseline_rounds=2)
    base, better, best = [0.0, 0, 0, 0], [0.0, 1, 0, 0], [0.0, 1, 1, 1]
    rounds = {
        ("selu", 0): [base, base],  # has no second round yet
        ("selu", 1): [base, better, best],
        ("selu", 2): [base, best, best],
        ("lmsi", 0): [base, base, best],
        ("lmsi", 1): [base, base, better],
    }
    told = compare(plan, {run.key: _record(run.key, rounds[run.method, run.settings.seed]) for run in plan.runs})
    first, second = (told.row("lmsi", number, "actor_beside_selu", "A") for number in (1, 2))
    assert first is not None
    assert second is not None
    assert (first.seeds, first.n, first.rate) == (2, 8, -1 / 8)
    assert (second.seeds, second.n, second.rate) == (1, 4, -2 / 4)
    assert told.row("selu", 1, "actor_beside_selu", "A") is None


def test_the_first_seed_of_every_method_comes_first() -> None:
    plan = plan_comparison(Settings(seed=5), ["selu", "lmsi"], seeds=3, rounds=4, baseline_seeds=2, baseline_rounds=1)
    assert [(run.method, run.settings.seed, run.settings.rounds) for run in plan.runs] == [
        ("selu", 5, 4),
        ("lmsi", 5, 1),
        ("selu", 6, 4),
        ("lmsi", 6, 1),
        ("selu", 7, 4),
    ]
    assert plan.common_round == 1
    with pytest.raises(ConfigError, match="baseline_rounds of a comparison must be at least 1, got 0"):
        plan_comparison(Settings(), baseline_rounds=0)


def test_what_was_not_run_is_said(tmp_path: Path) -> None:
    plan = plan_comparison(Settings(), ["selu", "lmsi"], seeds=2, baseline_seeds=1)
    store = Workspace(data_dir=tmp_path).store()
    told = compare(plan, runs_of(store, plan), {plan.runs[1].note: ("failed", "no label was accepted")})
    assert [(state.method, state.seed, state.state, state.said) for state in told.states] == [
        ("selu", 0, "not started", ""),
        ("lmsi", 0, "failed", "no label was accepted"),
        ("selu", 1, "not started", ""),
    ]
    assert told.rows == ()


def _drawn(
    sizes: dict[str, int], measured: list[tuple[str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, dict[str, list[str]]]:
    """The README of a comparison of one run, and the titles of each plot's panels as they are seen."""
    panels: dict[str, list[str]] = {}
    save = Figure.savefig

    def seen(figure: Figure, path: Path, **how: Any) -> None:
        panels[path.name] = [axes.get_title().splitlines()[0] for axes in figure.axes]
        assert all(axes.get_xlabel() for axes in figure.axes) or path.name == "methods.png"
        save(figure, path, **how)

    monkeypatch.setattr(Figure, "savefig", seen)
    plan = plan_comparison(validate_settings({"evaluation": sizes}), ["selu"], seeds=1, rounds=1)
    rows = tuple(
        _Place(method, role, number, 1).row(measure, Rate(rate=0.5, n=10, low=0.4, high=0.6), probe)
        for method, role, number in (("base model", "no training", 0), ("selu", "method", 1))
        for measure, probe in measured
    )
    return _write(Comparison(plan=plan, rows=rows, states=()), folder).read_text(encoding="utf-8"), panels


def test_what_is_not_evaluated_has_no_panel_and_no_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"critic_episodes_b": 0, "three_step_episodes": 0, "general_questions": 0}
    measured = [("critic", "A"), ("actor", "A"), ("actor", "B"), ("coverage", "")]
    readme, panels = _drawn(sizes, measured, tmp_path, monkeypatch)
    expected = ["critic, direct verdict, probe A", "actor, probe A", "actor, probe B"]
    assert (panels["learning_curves.png"], panels["methods.png"]) == (expected, expected)
    assert "| method | round | seeds | critic A | self-asking A | actor A | actor B | n |" in readme
    # That nothing was accepted as done is a figure, too.
    assert "| false “done” labels | episodes with one | false labels of the critic's |\n" in readme
    assert "three steps" not in readme
    assert "general, critic" not in readme
    assert "false_labels.png" not in readme


def test_a_plot_that_is_not_drawn_any_more_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme, panels = _drawn({}, [("critic", "A")], tmp_path, monkeypatch)
    assert len(panels["methods.png"]) == 4
    assert (tmp_path / "methods.png").exists()
    readme, _ = _drawn({}, [], tmp_path, monkeypatch)
    assert "methods.png" not in readme
    assert not (tmp_path / "methods.png").exists()
    assert "Nothing yet." in readme


def test_a_budget_that_an_artifact_does_not_tell_is_unknown(tmp_path: Path) -> None:
    class Stage:
        name = "self_asking"

        def __init__(self, *artifacts: object) -> None:
            self.artifacts = artifacts

    class Item:
        def __init__(self, *stages: Stage) -> None:
            self.stages = stages

    store = Store(tmp_path)

    def put(key: str, **provenance: object) -> object:
        with store.create("judgements", key, {"stage": "s", **provenance}) as draft:  # type: ignore[dict-item]
            (draft.path / "a.txt").write_text(key)
        return draft.ref

    told = put("0a", models=["m"], tokens={"read": 10, "written": 2, "trained": 0})
    no_model = put("0b", models=[])
    untold = put("0c", models=["m"])
    rounds = [Item(Stage(told, no_model)), Item(Stage(told)), Item(Stage(untold))]
    spent = _budgets(store, rounds)  # type: ignore[arg-type]
    # Found again, it costs nothing.
    assert [spent[number]["tokens_read"] for number in (0, 1)] == [10, 10]
    assert spent[2]["tokens_read"] is None


def test_recorded_runs_are_still_known_by_the_settings_they_were_made_with() -> None:
    """A setting that came later must not rename them: they would all be made again."""
    threads = {"threads": 1}
    settings = validate_settings(
        dict.fromkeys(("actor", "critic", "actor_finetuning", "critic_finetuning"), threads)
        | {"method": "selu", "report_to": [], "rollout": {"remember": "last"}, "dataset": {"corpus_pictures": 0}}
    )
    results = Path(__file__).parents[2] / "results"
    assert (results / "fourth_recipe" / "runs" / run_folder(settings)).is_dir()
    now = settings.model_dump() | {name: Settings().model_dump()[name] for name in ("rollout", "dataset")}
    assert (results / "comparison" / "runs" / run_folder(validate_settings(now))).is_dir()
