"""Finished rounds: what each one made, how long that took, and its figures in one summary.

A round is recorded as an artifact of kind ``round`` with one file, ``round.json``. Unlike any other artifact it is
about one *run*, not about content: a second run over the same settings reuses every stage and is recorded again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from selu.config import Settings
from selu.errors import ConfigError
from selu.evaluation import ItemOutcome, MetricRow
from selu.guards import GuardReport
from selu.memory import Memory
from selu.seeds import derived_seed
from selu.statistics import Rate, cluster_bootstrap_difference, without_empty_interval
from selu.store import ArtifactRef, Json, OracleRef, Store, artifact_key, read_table
from selu.worlds.tasks import THREE_STEPS

__all__ = [
    "ROUND_STAGES",
    "Decision",
    "Round",
    "StageName",
    "StageRecord",
    "Workspace",
    "decisions",
    "digests",
    "figure",
    "find_metric",
    "finished_rounds",
    "gains_from_base",
    "kept_with",
    "latest_round",
    "new_round",
    "round_line",
    "round_metrics",
    "rounds_of_run",
    "run_folder",
    "run_name",
    "run_summary",
    "same_training",
    "save_round",
    "summary",
    "why_stopped",
]

logger = logging.getLogger(__name__)

StageName = Literal[
    "rollout",
    "frames",
    "self_asking",
    "hindsight",
    "critic_dataset",
    "critic_finetuning",
    "rejudging",
    "actor_finetuning",
    "evaluation",
]

ROUND_STAGES: tuple[StageName, ...] = get_args(StageName)
"""The nine steps of a round, in their order."""

_KIND, _FILE = "round", "round.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Workspace(_Part):
    """Where a run keeps its things: everything lies below the settings' `data_dir`."""

    data_dir: Path = Field(description="absolute")
    gpu_slot: str | None = Field(default=None, description="what stages that keep a GPU busy wait for")

    @classmethod
    def of(cls, settings: Settings) -> Workspace:
        """The workspace that settings name."""
        return cls(data_dir=settings.data_dir.expanduser().absolute(), gpu_slot=settings.orchestration.gpu_slot)

    @property
    def store_root(self) -> Path:
        """Folder of the artifacts."""
        return self.data_dir / "store"

    def store(self) -> Store:
        """The artifacts.

        Raises:
            TerminalError: the folder can neither be found nor made.
        """
        return Store(self.store_root)

    @property
    def checkpoints(self) -> Path:
        """What a fine-tuning that was killed goes on from; empty when none is under way."""
        return self.data_dir / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Where TensorBoard finds training curves."""
        return self.data_dir / "tensorboard"

    @property
    def reports(self) -> Path:
        """Where reports for people are written."""
        return self.data_dir / "reports"

    @property
    def prefect_home(self) -> Path:
        """Prefect's own folder, with the database of runs."""
        return self.data_dir / "prefect"


class StageRecord(_Part):
    """What one stage of a round made."""

    name: StageName
    seconds: float = Field(description="wall-clock time in this run; near 0 for a reused stage")
    made_in_seconds: float = Field(description="time that making its artifacts took, whenever that was")
    cached: bool = Field(description="every artifact was in the store already")
    reused: int = Field(description="tasks that found their artifact in the store")
    tasks: int = Field(description="tasks of the stage, shards included")
    artifacts: tuple[ArtifactRef, ...] = Field(description="in the order of their shards, ground truth left out")


class Round(_Part):
    """A finished round. Lists of references are in the order of their shards."""

    run: str = Field(description="speaking name, e.g. selu thor seed 0")
    round: int = Field(ge=1)
    started: str = Field(description="ISO 8601, UTC")
    finished: str = Field(description="ISO 8601, UTC")
    settings: Settings = Field(description="the exact configuration")
    stages: tuple[StageRecord, ...] = Field(description="in the order of ROUND_STAGES")
    tasks: OracleRef = Field(description="instructions with their goals: the rollout, evaluation and readers only")
    episodes: tuple[ArtifactRef, ...]
    oracle: tuple[OracleRef, ...] = Field(description="ground truth of the episodes: evaluation and readers only")
    frames: tuple[ArtifactRef, ...]
    judgements: tuple[ArtifactRef, ...] = Field(description="questions, answers and verdicts of the first judging")
    relabels: tuple[ArtifactRef, ...] = Field(description="of the first judging")
    contrasts: tuple[ArtifactRef, ...] = Field(description="further judgements that balance the critic's dataset")
    corpus_pictures: ArtifactRef | None = Field(default=None, description="pictures of the critic's corpus; None: none")
    corpus_judgements: tuple[ArtifactRef, ...] = Field(default=(), description="the critic's, on these pictures")
    rejudgements: tuple[ArtifactRef, ...] = Field(description="by the improved critic")
    rerelabels: tuple[ArtifactRef, ...] = Field(description="by the improved critic")
    critic_dataset: ArtifactRef | None = Field(description="None: the critic was not fine-tuned")
    actor_dataset: ArtifactRef | None = Field(description="None: the actor was not fine-tuned")
    critic_adapter: ArtifactRef | None = Field(description="the critic's after the round; None: it has none")
    actor_adapter: ArtifactRef | None = Field(description="the actor's after the round; None: it has none")
    critic_candidate: ArtifactRef | None = Field(default=None, description="what fine-tuning made, promoted or not")
    actor_candidate: ArtifactRef | None = Field(default=None, description="what fine-tuning made, promoted or not")
    guards: tuple[GuardReport, ...] = Field(default=(), description="decisions on the candidates; empty: no guards")
    guard_artifacts: tuple[ArtifactRef, ...] = Field(default=(), description="where these decisions stand")
    revisions: dict[str, str] = Field(description="model revisions: actor_before, actor_after, critic_before, ...")
    metrics: tuple[ArtifactRef, ...]

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_then(cls, data: Any) -> Any:
        """A round from before a setting was there did what its neutral value says, and not what is the default now."""
        if isinstance(data, dict) and isinstance(data.get("settings"), dict):
            settings = data["settings"]
            then: dict[str, dict[str, Any]] = {"rollout": {"remember": "last"}, "dataset": {"corpus_pictures": 0}}
            filled = {name: {**value, **settings.get(name, {})} for name, value in then.items()}
            return {**data, "settings": {**settings, **filled}}
        return data

    def stage(self, name: StageName) -> StageRecord:
        """The record of one stage."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def cached(self) -> list[str]:
        """Names of the stages that were reused as a whole."""
        return [stage.name for stage in self.stages if stage.cached and stage.tasks]


def run_name(settings: Settings) -> str:
    """Speaking name of a run, e.g. ``selu thor seed 0``; a name that the user gave comes first."""
    plain = f"{settings.method} {settings.world.name} seed {settings.seed}"
    return plain if settings.name == "default" else f"{settings.name}: {plain}"


def run_folder(settings: Settings) -> str:
    """Name of a run's folders for people, e.g. ``selu-thor-seed-0-1f9a03bc``: runs of other settings have others."""
    plain = re.sub(r"[^a-z0-9]+", "-", run_name(settings).lower()).strip("-")
    return f"{plain}-{hashlib.sha256(_shaping(settings, set()).encode()).hexdigest()[:8]}"


def same_training(one: Settings, other: Settings) -> bool:
    """Whether two settings train the same adapters: how they are called and evaluated may differ."""
    return _shaping(one, {"name", "evaluation"}) == _shaping(other, {"name", "evaluation"})


def _shaping(settings: Settings, but: set[str]) -> str:
    """Settings without those that say where results go, how many rounds there are and who runs them."""
    left_out: dict[str, Any] = dict.fromkeys(("data_dir", "rounds", "report_to", "orchestration", *but), True)
    left_out |= {key: {"checkpoint_steps"} for key in ("actor_finetuning", "critic_finetuning")}
    # So that folders of runs from before these settings keep their names.
    if settings.dataset.corpus_pictures == 0:
        left_out["dataset"] = {"corpus_pictures"}
    if Memory.of(settings.rollout).remember == "last":
        left_out["rollout"] = {"remember"}
    return json.dumps(settings.model_dump(mode="json", exclude=left_out), sort_keys=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_round(*, started: str, **parts: Any) -> Round:
    """A round that has just finished; `parts` are the fields of :class:`Round` but its times."""
    return Round(started=started, finished=_now(), **parts)


def save_round(store: Store, finished: Round) -> ArtifactRef:
    """Keep the record of a round."""
    content = finished.model_dump(mode="json")
    key = artifact_key(_KIND, 1, content, [])
    provenance: dict[str, Json] = {
        "stage": _KIND,
        "run": finished.run,
        "round": finished.round,
        "finished": finished.finished,
    }
    with store.create(_KIND, key, provenance) as draft:
        (draft.path / _FILE).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return draft.ref


def finished_rounds(store: Store) -> list[Round]:
    """All rounds, the one that finished last at the end.

    Raises:
        ArtifactError: a record is altered.
    """
    found, unread = _read_rounds(store)
    if unread:
        _say_once(unread)
    return found


def _read_rounds(store: Store) -> tuple[list[Round], str]:
    """The rounds that can be read here, and a sentence about those that cannot, empty if there are none."""
    found, unread = [], []
    for ref in store.all(_KIND):
        store.verify(ref)
        path = store.path(ref) / _FILE
        try:
            found.append(Round.model_validate_json(path.read_bytes()))
        except (ValidationError, OSError) as error:
            # Recorded by another version of the project, or in a world of a user's own that is not importable now; its
            # artifacts are still in the store.
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            unread.append(f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error))
    found.sort(key=lambda item: (item.finished, item.round))
    if not unread:
        return found, ""
    return found, (
        f"{len(unread)} of {len(found) + len(unread)} finished rounds in {store.root} cannot be read and are left out "
        f"({unread[-1]}); what they made is kept"
    )


@functools.cache
def _say_once(warning: str) -> None:
    logger.warning(warning)


def latest_round(store: Store, run: str | None = None) -> Round:
    """The round that finished last (of the named run).

    Raises:
        ConfigError: there is none, or none that can be read here.
    """
    rounds, unread = _read_rounds(store)
    if unread and not rounds:
        raise ConfigError(unread)
    wanted = [item for item in rounds if run is None or item.run == run]
    if not wanted:
        others = sorted({item.run for item in rounds})
        there = f"; finished runs there: {', '.join(others)}" if others else ""
        of_run = f" of the run {run!r}" if run else ""
        raise ConfigError(
            f"no finished round{of_run} in {store.root}{there}; start one with `selu round`, or name another data_dir="
        )
    return wanted[-1]


def rounds_of_run(store: Store, finished: Round) -> list[Round]:
    """The rounds that led to a finished one, the first at the beginning and that one at the end.

    A round is recorded whenever it is run; of each, the latest record that is not younger than what follows it counts.
    Where one is missing (its record was deleted) the chain begins after it.
    """
    chain = [finished]
    for item in reversed(finished_rounds(store)):
        after = chain[0]
        same = item.run == finished.run and _shaping(item.settings, set()) == _shaping(finished.settings, set())
        if same and item.round == after.round - 1 and item.finished <= after.finished:
            chain.insert(0, item)
    return chain


def kept_with(store: Store, newest: int | None) -> list[Round]:
    """The newest finished rounds, so many or all, with those that led to them.

    A round that was run again counts once, by its newest record.
    """
    latest = {(item.run, item.round, _shaping(item.settings, set())): item for item in finished_rounds(store)}
    rounds = sorted(latest.values(), key=lambda item: (item.finished, item.round))
    chosen = rounds if newest is None else rounds[len(rounds) - min(newest, len(rounds)) :]
    return [before for item in chosen for before in rounds_of_run(store, item)]


def why_stopped(rounds: Sequence[Round]) -> str | None:
    """A sentence if nothing was promoted for so many rounds that self-learning stops; None: it goes on."""
    if not rounds or rounds[-1].round >= rounds[-1].settings.rounds:
        return None
    stop = rounds[-1].settings.guard.stop
    idle = 0
    for item in reversed(rounds):
        if _took_something_into_use(item):
            break
        idle += 1
    if not stop or idle < stop:
        return None
    return (
        f"Self-learning stopped after round {rounds[-1].round} of {rounds[-1].settings.rounds}: no new adapter was taken into "
        f"use in {idle} round{'s' if idle > 1 else ''} in a row (guard.stop={stop})."
    )


def _took_something_into_use(item: Round) -> bool:
    """Whether a new adapter was promoted, or none was to be made."""
    made = [
        (item.settings.critic_finetuning, item.critic_candidate, item.critic_adapter),
        (item.settings.actor_finetuning, item.actor_candidate, item.actor_adapter),
    ]
    asked_for = [(candidate, adapter) for settings, candidate, adapter in made if settings.enabled]
    return not asked_for or any(candidate is not None and candidate == adapter for candidate, adapter in asked_for)


# Figures -------------------------------------------------------------------------------------------------------------


def round_metrics(store: Store, finished: Round) -> list[MetricRow]:
    """Every figure of a round; where its interval would have no width, the bounds are NaN.

    Raises:
        ArtifactError: an artifact of figures is no longer there, damaged or altered.
    """
    for ref in finished.metrics:
        store.verify(ref)
    return [
        without_empty_interval(row)
        for ref in finished.metrics
        for row in read_table(store.path(ref) / "metrics.parquet", MetricRow)
    ]


def find_metric(
    rows: Iterable[MetricRow], *, subject: str, phase: str, probe: str, method: str, metric: str
) -> MetricRow | None:
    """The figure with these coordinates, or None."""
    wanted = (subject, phase, probe, method, metric)
    return next(
        (row for row in rows if (row.subject, row.phase, row.probe, row.method, row.metric) == wanted),
        None,
    )


def _number(value: float) -> float | None:
    """JSON has no NaN: a figure that is undefined is null."""
    return round(value, 6) if math.isfinite(value) else None


def figure(row: MetricRow | Rate | None) -> dict[str, Any] | None:
    """A figure as JSON: ``rate``, ``n`` and ``ci95``, null where there is none."""
    if row is None:
        return None
    return {"rate": _number(row.rate), "n": row.n, "ci95": [_number(row.low), _number(row.high)]}


def _before_and_after(
    rows: Sequence[MetricRow], subject: str, probe: str, method: str, metric: str
) -> dict[str, dict[str, Any] | None]:
    figures = {
        phase: figure(find_metric(rows, subject=subject, phase=phase, probe=probe, method=method, metric=metric))
        for phase in ("before", "after")
    }
    gain = find_metric(rows, subject=subject, phase="after", probe=probe, method=method, metric=f"{metric}_gain")
    return figures | {"gain": figure(gain)}


def _labels(rows: Sequence[MetricRow], phase: str) -> dict[str, Any]:
    def row(metric: str) -> MetricRow | None:
        return find_metric(rows, subject="labels", phase=phase, probe="learning", method="selu", metric=metric)

    false_rate, coverage, labelled = row("false_rate"), row("coverage"), row("labelled")
    return {
        "n": false_rate.n if false_rate else 0,
        "episodes": coverage.n if coverage else 0,
        "coverage": _number(coverage.rate) if coverage else None,
        "labelled": _number(labelled.rate) if labelled else None,
        "false_rate": _number(false_rate.rate) if false_rate else None,
        "false_rate_ci95": [_number(false_rate.low), _number(false_rate.high)] if false_rate else None,
    }


def _critic_labels(rows: Sequence[MetricRow]) -> MetricRow | None:
    return find_metric(
        rows, subject="labels", phase="before", probe="learning", method="selu", metric="false_rate_critic_labels"
    )


def digests(finished: Round) -> dict[str, str | None]:
    """Content hashes of what a round made to learn from and learned; None for what it did not make."""
    refs = {
        "actor_adapter": finished.actor_adapter,
        "actor_dataset": finished.actor_dataset,
        "critic_adapter": finished.critic_adapter,
        "critic_dataset": finished.critic_dataset,
    }
    return {name: None if ref is None else ref.digest for name, ref in refs.items()}


def summary(store: Store, finished: Round) -> dict[str, Any]:
    """The round in plain JSON values, as ``selu report --json`` prints it.

    `critic` is the balanced accuracy of the direct verdict and `actor` the rate of success, both on probe set A; what
    they are on B stands under ``probe_b``, on tasks of three steps under ``three_steps``. `labels` are those of the improved
    critic, which train the actor; those of the critic as it was stand under ``before``. Of these, ``n`` counts labels that
    say "done", ``false_rate`` is the share of false ones among them and ``coverage`` the share of episodes that gave one;
    ``labelled`` is the share of episodes that gave any accepted label. ``labels.before.critic_labels`` is the share of false
    ones among everything, "not done" and contrasts included, that the critic's dataset is drawn from (pictures of
    the corpus left out: truth about them is not kept).
    ``critic.own`` is the direct verdict on what the actor played on A itself. `guards` are the guards'
    decisions: their signals and limits, what the candidate then gained by the oracle, and whether they were right.
    `general` is the share of right answers to questions outside the tasks, null where they were left out.

    Raises:
        ArtifactError: a figure's artifact is no longer there.
    """
    rows = round_metrics(store, finished)
    critic = _before_and_after(rows, "critic", "A", "direct", "balanced_accuracy")
    actor = _before_and_after(rows, "actor", "A", "selu", "success_rate")
    return {
        "run": finished.run,
        "round": finished.round,
        "finished": finished.finished,
        "critic": {
            **critic,
            "probe_b": _before_and_after(rows, "critic", "B", "direct", "balanced_accuracy"),
            "self_asking": {
                **_before_and_after(rows, "critic", "A", "self_asking", "balanced_accuracy"),
                "probe_b": _before_and_after(rows, "critic", "B", "self_asking", "balanced_accuracy"),
            },
            "own": _before_and_after(rows, "critic", "A", "direct:own", "balanced_accuracy"),
        },
        "actor": {
            **actor,
            "probe_b": _before_and_after(rows, "actor", "B", "selu", "success_rate"),
            "three_steps": _before_and_after(rows, "actor", "A", THREE_STEPS, "success_rate"),
        },
        "labels": {
            **_labels(rows, "after"),
            "before": {**_labels(rows, "before"), "critic_labels": figure(_critic_labels(rows))},
        },
        "general": {who: _before_and_after(rows, "general", "A+B", who, "accuracy") for who in ("actor", "critic")},
        "seconds": {stage.name: round(stage.seconds, 3) for stage in finished.stages},
        "made_in_seconds": {stage.name: round(stage.made_in_seconds, 3) for stage in finished.stages},
        "digests": digests(finished),
        "guards": [_decided(item) for item in decisions(rows, finished)],
        "cached": finished.cached,
    }


@dataclass(frozen=True)
class Decision:
    """A guard's decision beside what the oracle says of the candidate; the guard itself could not know."""

    report: GuardReport
    gain: MetricRow | None
    """What the candidate gained over the model from before on probe A: direct verdict or success."""
    gain_b: MetricRow | None
    """The same on probe B."""
    right: bool | None
    """By the gain on A: a promotion was wrong if the candidate is measurably worse, a refusal if it is measurably better
    (its 95 % interval does not reach 0); None where there is a difference and no interval."""


def decisions(rows: Sequence[MetricRow], finished: Round) -> list[Decision]:
    """What the guards of a round decided, held against the figures of its evaluation."""
    measured = {
        "critic": ("critic", "direct", "balanced_accuracy_gain"),
        "actor": ("actor", "selu", "success_rate_gain"),
    }
    found = []
    for report in finished.guards:
        subject, method, metric = measured[report.who]
        phase = "after" if report.passed else "rejected"
        gain, gain_b = (
            find_metric(rows, subject=subject, phase=phase, probe=probe, method=method, metric=metric)
            for probe in ("A", "B")
        )
        right = None
        if gain is not None and gain.rate == 0:
            right = True  # as good as the other: neither to take it nor to leave it was wrong
        elif gain is not None and math.isfinite(gain.low) and math.isfinite(gain.high):
            right = gain.high >= 0 if report.passed else gain.low <= 0
        found.append(Decision(report, gain, gain_b, right))
    return found


def _decided(item: Decision) -> dict[str, Any]:
    return item.report.model_dump(mode="json") | {
        "gain": figure(item.gain),
        "gain_probe_b": figure(item.gain_b),
        "right": item.right,
    }


def run_summary(store: Store, finished: Round) -> dict[str, Any]:
    """:func:`summary` of a run's last round, and beside it ``rounds``: that of every round in order, and
    ``gain_from_base``: from the models as they were set to those after the last round, paired, intervals by scene.

    Raises:
        ArtifactError: a figure's artifact is no longer there.
    """
    rounds = rounds_of_run(store, finished)
    summaries = [summary(store, item) for item in rounds]
    return summaries[-1] | {
        "rounds": summaries,
        "gain_from_base": _gain_from_base(store, rounds),
        "stopped": why_stopped(rounds),
    }


def gains_from_base(store: Store, rounds: Sequence[Round]) -> dict[tuple[str, str], Rate]:
    """What the last of a run's rounds gained over the models as they were set, by model and probe (A, B), paired.

    Nothing unless the first round is at hand: another one does not start from the base.
    """
    if rounds[0].round != 1:
        return {}

    def outcomes(finished: Round, phase: str) -> dict[tuple[str, str, str], dict[str, ItemOutcome]]:
        found: dict[tuple[str, str, str], dict[str, ItemOutcome]] = {}
        for ref in finished.metrics:
            path = store.path(ref) / "outcomes.parquet"
            if path.is_file():
                for row in read_table(path, ItemOutcome):
                    if row.phase == phase:
                        found.setdefault((row.subject, row.probe, row.method), {})[row.item] = row
        return found

    base, now = outcomes(rounds[0], "before"), outcomes(rounds[-1], "after")
    gains: dict[tuple[str, str], Rate] = {}
    for who, method in (("critic", "direct"), ("actor", "selu")):
        for probe in ("A", "B"):
            first, last = base.get((who, probe, method)), now.get((who, probe, method))
            if first is None or last is None or first.keys() != last.keys():
                continue
            items = sorted(first)
            # The critic's probes are balanced, so the mean of what each judgement earned is the balanced accuracy.
            gained = cluster_bootstrap_difference(
                [first[item].value for item in items],
                [last[item].value for item in items],
                [first[item].scene for item in items],
                derived_seed(0, "evaluation"),
                rounds[-1].settings.evaluation.bootstrap,
            )
            gains[who, probe] = without_empty_interval(gained)
    return gains


def _gain_from_base(store: Store, rounds: Sequence[Round]) -> dict[str, Any] | None:
    if rounds[0].round != 1:
        return None
    gains = gains_from_base(store, rounds)
    return {
        "critic": figure(gains.get(("critic", "A"))),
        "critic_probe_b": figure(gains.get(("critic", "B"))),
        "actor": figure(gains.get(("actor", "A"))),
        "actor_probe_b": figure(gains.get(("actor", "B"))),
    }


def round_line(figures: dict[str, Any]) -> str:
    """A round's figures (as of :func:`summary`) in one line."""

    def went(part: dict[str, Any]) -> str:
        rates = [None if part[phase] is None else part[phase]["rate"] for phase in ("before", "after")]
        return " -> ".join("-" if rate is None else f"{100 * rate:.1f}" for rate in rates)

    def of(part: dict[str, Any]) -> str:
        beside = part["probe_b"]
        return f"A {went(part)}" + (f", B {went(beside)}" if beside["before"] is not None else "")

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    labels = figures["labels"]
    guarded = "; ".join(f"{item['who']} {'promoted' if item['passed'] else 'refused'}" for item in figures["guards"])
    return (
        f"Round {figures['round']}: critic {of(figures['critic'])}; actor {of(figures['actor'])}; labels that say done on "
        f"{share(labels['coverage'])} of episodes, false {share(labels['false_rate'])}"
        + (f"; {guarded}" if guarded else "")
    )
