"""SELU beside its baselines and ablations: which runs there are to be, and their figures pooled over seeds.

The figures are read from what finished rounds left (:mod:`selu.comparison.runs`), so that a table can be drawn at any
time. Those of probes are pooled item by item: all seeds of a method meet the same frozen items, and intervals come from a
bootstrap that resamples scenes with all seeds in them. Gains are paired with the base model on the same item, and what
is beside SELU with SELU's run of the same seed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from selu.comparison.runs import SPENT, ItemKey, RunRecord, record_run
from selu.config import Settings
from selu.errors import ArtifactError, ConfigError
from selu.evaluation import ItemOutcome
from selu.methods import Method, load_methods, method_settings
from selu.records import Record
from selu.rounds import Round, finished_rounds, run_folder
from selu.seeds import derived_seed
from selu.statistics import Rate, bootstrap_balanced_accuracy, bootstrap_mean, wilson, without_empty_interval
from selu.store import Store
from selu.worlds.tasks import THREE_STEPS

__all__ = [
    "BESIDE",
    "GAIN",
    "Comparison",
    "ComparisonRow",
    "Plan",
    "PlannedRun",
    "RunState",
    "State",
    "compare",
    "is_whole",
    "plan_comparison",
    "runs_of",
]

State = Literal["finished", "running", "failed"]

_SEED = derived_seed(0, "comparison")

GAIN, BESIDE = "_gain", "_beside_selu"
"""What the name of a measure ends on where it is a difference: over the base model, and over SELU after as many rounds."""


class PlannedRun(BaseModel):
    """One method with one seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    settings: Settings

    @property
    def key(self) -> str:
        """Tells a run from one with other settings; the number of its rounds does not matter."""
        return run_folder(self.settings)

    @property
    def note(self) -> str:
        """What is noted about it goes by: a run that is to have more rounds is not finished yet."""
        return f"{self.key}, {self.settings.rounds} rounds"


class Plan(BaseModel):
    """All runs of a comparison, in the order in which they are made: the first seed of every method, then the second."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: Settings = Field(description="everybody's, before a method changes them")
    methods: tuple[Method, ...]
    runs: tuple[PlannedRun, ...]
    bootstrap: int = Field(description="resamples behind an interval")
    common_round: int = Field(description="the last round that all methods are to reach")

    def seeds(self, method: str) -> list[int]:
        """Seeds that a method is to run with."""
        return [run.settings.seed for run in self.runs if run.method == method]

    def measures(self, measure: str, probe: str) -> bool:
        """Whether the evaluation is large enough for a measure to have figures on a probe; a size of 0 leaves it out."""
        sizes = self.settings.evaluation
        asked = {
            ("actor", "B"): sizes.actor_episodes_b,
            ("critic", "A"): sizes.critic_episodes_a,
            ("critic", "B"): sizes.critic_episodes_b,
            ("critic_self_asking", "A"): sizes.critic_episodes_a,
            ("critic_self_asking", "B"): sizes.critic_episodes_b,
            ("actor_three_steps", "A"): sizes.three_step_episodes,
            ("general_critic", "A+B"): sizes.general_questions,
            ("general_actor", "A+B"): sizes.general_questions,
        }
        for difference in (GAIN, BESIDE):
            measure = measure.removesuffix(difference)
        return asked.get((measure, probe), 1) > 0


def plan_comparison(
    settings: Settings,
    methods: Sequence[str] = (),
    *,
    seeds: int = 5,
    rounds: int = 8,
    baseline_seeds: int = 3,
    baseline_rounds: int = 2,
) -> Plan:
    """The runs of the named methods (all of them, if none is named): SELU with `seeds` and `rounds`, others with theirs.

    Seeds count up from the settings' own.

    Raises:
        ConfigError: there is no such method, a number is below 1, or a method does not fit the settings.
    """
    numbers = {
        "seeds": seeds,
        "rounds": rounds,
        "baseline_seeds": baseline_seeds,
        "baseline_rounds": baseline_rounds,
    }
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name} of a comparison must be at least 1, got {number}")
    chosen = load_methods(methods)
    sizes = {
        method.name: (seeds, rounds) if method.role == "method" else (baseline_seeds, baseline_rounds)
        for method in chosen
    }
    runs = [
        PlannedRun(
            method=method.name,
            settings=method_settings(settings, method, seed=settings.seed + offset, rounds=sizes[method.name][1]),
        )
        for offset in range(max(count for count, _ in sizes.values()))
        for method in chosen
        if offset < sizes[method.name][0]
    ]
    return Plan(
        settings=settings,
        methods=tuple(chosen),
        runs=tuple(runs),
        bootstrap=settings.evaluation.bootstrap,
        common_round=min(number for _, number in sizes.values()),
    )


class RunState(BaseModel):
    """How far a run is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    seed: int
    state: Literal["finished", "running", "failed", "not started"]
    rounds: int = Field(description="finished rounds")
    wanted: int = Field(description="rounds it is to have")
    said: str = Field(default="", description="why it failed")
    base_models: dict[str, str] = Field(
        default_factory=dict,
        description="revisions of the actor and the critic before any learning, in the first round",
    )
    digests: tuple[dict[str, str | None], ...] = Field(
        default=(), description="of each finished round: hashes of its dataset versions and adapters"
    )


class ComparisonRow(Record):
    """One figure of one method after one round; a row of table.csv."""

    method: str
    role: str
    round: int = Field(description="rounds of learning; 0: none")
    seeds: int = Field(description="runs behind it")
    measure: str = Field(
        description="critic (balanced accuracy of the direct verdict), critic_self_asking, actor (success), "
        "actor_three_steps, general_critic, general_actor, each also with _gain (over the base model) and _beside_selu (over "
        "SELU, of the seeds that both ran); false_rate, coverage, labelled and false_rate_critic_labels of labels; "
        "environment_steps, tokens_read, tokens_written and tokens_trained of a run up to this round"
    )
    probe: str = Field(description="A: learning scenes, B: transfer scenes, A+B; empty for labels and budgets")
    kind: str = Field(description="all, one_step or two_step tasks")
    rate: float
    low: float = Field(description="95 % interval; NaN where there is none")
    high: float
    n: int = Field(description="items of all seeds; episodes or labels; for budgets, runs")


@dataclass(frozen=True)
class Comparison:
    """A comparison as far as it has come."""

    plan: Plan
    states: tuple[RunState, ...]
    rows: tuple[ComparisonRow, ...]

    def row(self, method: str, number: int, measure: str, probe: str = "", kind: str = "all") -> ComparisonRow | None:
        """The figure with these coordinates, or None."""
        wanted = (method, number, measure, probe, kind)
        return next(
            (row for row in self.rows if (row.method, row.round, row.measure, row.probe, row.kind) == wanted), None
        )

    def rounds(self, method: str) -> list[int]:
        """Rounds of a method that have figures, ascending."""
        return sorted({row.round for row in self.rows if row.method == method})


def runs_of(
    store: Store,
    plan: Plan,
    records: Mapping[str, RunRecord] | None = None,
    counts: Callable[[PlannedRun, RunRecord], bool] = lambda run, record: True,
) -> dict[str, RunRecord]:
    """What there is of a plan's runs by their keys, all their rounds: from `records`, or from the store where it has more.

    A key tells settings apart and not the code that followed them: of the store's runs those are left out that do not
    `counts`.

    Raises:
        ArtifactError: figures of a finished round are no longer there.
    """
    recorded: dict[str, dict[int, Round]] = defaultdict(dict)
    for item in finished_rounds(store):
        recorded[run_folder(item.settings)][item.round] = item
    found: dict[str, RunRecord] = {}
    for run in plan.runs:
        rounds = _in_a_row(recorded[run.key])
        kept = (records or {}).get(run.key)
        if kept is not None:
            found[run.key] = kept
        if rounds and (kept is None or kept.rounds < len(rounds)):
            made = record_run(store, run.key, rounds)
            if counts(run, made):
                found[run.key] = made
    return found


def is_whole(run: PlannedRun, record: RunRecord | None) -> bool:
    """Whether a run has come to its end: all its rounds, or where it stopped itself."""
    return record is not None and (record.rounds >= run.settings.rounds or record.stopped is not None)


def compare(
    plan: Plan, found: Mapping[str, RunRecord], told: Mapping[str, tuple[State, str]] | None = None
) -> Comparison:
    """Everything that is known of a plan's runs by now.

    `found` are the runs by their keys (:func:`runs_of`); `told` is what the flow noted, by :attr:`PlannedRun.note`: a
    state and, of a failed run, the sentence.
    """
    told = told or {}
    runs: dict[str, dict[int, RunRecord]] = defaultdict(dict)
    states = []
    for run in plan.runs:
        record = found.get(run.key)
        if record is not None:
            record = record.up_to(run.settings.rounds)
        state, said = told.get(run.note, (None, ""))
        if record is not None and is_whole(run, record):
            state, said = "finished", "" if record.rounds >= run.settings.rounds else record.stopped or ""
        elif state is None and record is not None:
            state = "running"
        states.append(
            RunState(
                method=run.method,
                seed=run.settings.seed,
                state=state or "not started",
                rounds=0 if record is None else record.rounds,
                wanted=run.settings.rounds,
                said=said,
                base_models={} if record is None else record.base_models,
                digests=() if record is None else record.digests,
            )
        )
        if record is not None:
            runs[run.method][run.settings.seed] = record
    rows: list[ComparisonRow] = []
    selu = next((runs[method.name] for method in plan.methods if method.role == "method"), {})
    for method in plan.methods:
        longest = max((run.rounds for run in runs[method.name].values()), default=0)
        for number in range(1, longest + 1):
            # With the runs that stopped: else the curve would rise because the bad ones have left.
            some = {seed: run for seed, run in runs[method.name].items() if run.reaches(number)}
            rows += _rows_of(_Place(method.name, method.role, number, len(some)), list(some.values()), plan.bootstrap)
            both = [seed for seed in some if seed in selu and selu[seed].reaches(number)]
            if method.role != "method" and both:
                pairs = [(some[seed].after(number), selu[seed].after(number)) for seed in both]
                place = _Place(method.name, method.role, number, len(both))
                rows += _differences(place, pairs, BESIDE, "SELU", plan.bootstrap, _MEASURES)
    untrained = next((run for some in runs.values() for run in some.values()), None)
    if untrained is not None:
        rows = [*_untrained_rows(untrained, plan.bootstrap), *rows]
    return Comparison(plan, tuple(states), tuple(rows))


def _in_a_row(rounds: Mapping[int, Round]) -> list[Round]:
    """Rounds 1, 2, ... as far as each goes on from the one before.

    Of a run that was started anew, with changed code, later rounds of the first time may still be recorded.
    """
    found: list[Round] = []
    while (item := rounds.get(len(found) + 1)) is not None:
        if found and not _goes_on(found[-1], item):
            break
        found.append(item)
    return found


def _goes_on(last: Round, item: Round) -> bool:
    return all(item.revisions[f"{who}_before"] == last.revisions[f"{who}_after"] for who in ("actor", "critic"))


# Figures -------------------------------------------------------------------------------------------------------------


Outcomes = Mapping[ItemKey, ItemOutcome]


@dataclass(frozen=True)
class _Place:
    method: str
    role: str
    round: int
    seeds: int

    def row(self, measure: str, rate: Rate, probe: str = "", kind: str = "all") -> ComparisonRow:
        return ComparisonRow(
            method=self.method,
            role=self.role,
            round=self.round,
            seeds=self.seeds,
            measure=measure,
            probe=probe,
            kind=kind,
            rate=rate.rate,
            low=rate.low,
            high=rate.high,
            n=rate.n,
        )


_MEASURES = (
    ("critic", "critic", "direct", ("A", "B")),
    ("critic_self_asking", "critic", "self_asking", ("A", "B")),
    ("actor", "actor", "selu", ("A", "B")),
    ("actor_three_steps", "actor", THREE_STEPS, ("A",)),
    ("general_critic", "general", "critic", ("A+B",)),
    ("general_actor", "general", "actor", ("A+B",)),
)
"""Measure, and the subject, method and probes of its outcomes."""


def _kinds(items: Sequence[ItemOutcome]) -> Iterable[tuple[str, list[int]]]:
    """Places of the items of each kind of task; `all` of them first."""
    yield "all", list(range(len(items)))
    if items[0].subject != "general" and items[0].method != THREE_STEPS:
        for kind, two in (("one_step", False), ("two_step", True)):
            places = [place for place, item in enumerate(items) if (item.kind == "two_step") is two]
            if places:
                yield kind, places


def _pooled(items: Sequence[ItemOutcome], values: Sequence[float], samples: int) -> Rate:
    """Balanced accuracy of a critic's items, the mean of others', of outcomes or of gains; clustered by scene."""
    scenes = [item.scene for item in items]
    if items and items[0].truth is not None:
        truth = [item.truth is True for item in items]
        return without_empty_interval(bootstrap_balanced_accuracy(values, truth, scenes, _SEED, samples))
    return without_empty_interval(bootstrap_mean(values, scenes, _SEED, samples))


def _outcome(items: Sequence[ItemOutcome], samples: int) -> Rate:
    """What some items came to. Where all of a rate's are alike, Wilson's interval, over items that seeds but repeat."""
    pooled = _pooled(items, [item.value for item in items], samples)
    if items[0].truth is not None or pooled.rate not in (0.0, 1.0):
        return pooled
    distinct = len({item.item for item in items})
    bounds = wilson(round(pooled.rate * distinct), distinct)
    return pooled.model_copy(update={"low": bounds.low, "high": bounds.high})


def _items_at(outcomes: Outcomes, place: tuple[str, str, str]) -> dict[ItemKey, ItemOutcome]:
    """The items of a subject, probe and method."""
    return {key: row for key, row in outcomes.items() if key[:3] == place}


def _measured(
    place: _Place, found: Sequence[Outcomes], samples: int, measures: Iterable[tuple[str, str, str, tuple[str, ...]]]
) -> list[ComparisonRow]:
    """Figures of the runs of one method, their items pooled."""
    rows = []
    for measure, subject, method, probes in measures:
        for probe in probes:
            items = [row for outcomes in found for row in _items_at(outcomes, (subject, probe, method)).values()]
            for kind, places in _kinds(items) if items else ():
                rows.append(place.row(measure, _outcome([items[index] for index in places], samples), probe, kind))
    return rows


def _differences(
    place: _Place,
    pairs: Sequence[tuple[Outcomes, Outcomes]],
    which: str,
    whom: str,
    samples: int,
    measures: Iterable[tuple[str, str, str, tuple[str, ...]]],
) -> list[ComparisonRow]:
    """How much more runs come to than others, item by item, the items of all runs pooled.

    `pairs` are the outcomes of a run, and of what it is compared with; `which` ends the names of the measures, and `whom`
    it is that a run is compared with.
    """
    rows = []
    for measure, subject, method, probes in measures:
        for probe in probes:
            items: list[ItemOutcome] = []
            more: list[float] = []
            for outcomes, others in pairs:
                mine = _items_at(outcomes, (subject, probe, method))
                if strange := sorted(key[3] for key in mine if key not in others):
                    raise ArtifactError(
                        f"{place.method}, round {place.round}: {len(strange)} items of probe {probe} ({strange[0]}) were "
                        f"never given to {whom}, so that there is no difference to measure"
                    )
                items += mine.values()
                more += [row.value - others[key].value for key, row in mine.items()]
            for kind, places in _kinds(items) if items else ():
                gained = _pooled([items[index] for index in places], [more[index] for index in places], samples)
                rows.append(place.row(f"{measure}{which}", gained, probe, kind))
    return rows


_LABELS = (
    ("false_rate", "after"),
    ("coverage", "after"),
    ("labelled", "after"),
    ("false_rate_critic_labels", "before"),
)
"""Figures of labels, and which judging they are about: the improved critic's, but for what the critic learned from."""


def _rows_of(place: _Place, runs: Sequence[RunRecord], samples: int) -> list[ComparisonRow]:
    number = place.round
    rows = _measured(place, [run.after(number) for run in runs], samples, _MEASURES)
    pairs = [(run.after(number), run.base()) for run in runs]
    rows += _differences(place, pairs, GAIN, "the base model", samples, _MEASURES)
    for metric, phase in _LABELS:
        told = [
            row
            for run in runs
            for row in run.metrics_of(number)
            if (row.subject, row.phase, row.metric) == ("labels", phase, metric) and row.n
        ]
        if told:
            hits, n = sum(round(row.rate * row.n) for row in told), sum(row.n for row in told)
            rows.append(place.row(metric, wilson(hits, n)))
    budgets = [run.budget(number) for run in runs]
    for name in SPENT:
        mean = sum(budget[name] for budget in budgets) / len(runs)
        rows.append(place.row(name, Rate(rate=mean, n=len(runs), low=math.nan, high=math.nan)))
    return rows


def _untrained_rows(run: RunRecord, samples: int) -> list[ComparisonRow]:
    """What needs no learning: the base model, its self-asking as a critic, and the actor's floor and ceiling.

    They are the same in every run, whose probes and base model are one.
    """
    both = ("A", "B")
    wanted: list[tuple[str, Sequence[tuple[str, str, str, tuple[str, ...]]]]] = [
        ("base model", _MEASURES),
        ("self-asking, untrained", [("critic", "critic", "self_asking", both)]),
        ("random actor", [("actor", "actor", "random", both)]),
        ("planner", [("actor", "actor", "planner", both)]),
    ]
    return [
        row
        for name, measures in wanted
        for row in _measured(_Place(name, "no training", 0, 1), [run.base()], samples, measures)
    ]
