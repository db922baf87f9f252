"""What the report of a round shows, gathered from the store into plain values: no HTML here.

This package is the one place beside evaluation that takes references to ground truth, for the reader's eyes alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from selu.errors import ArtifactError
from selu.evaluation import MetricRow
from selu.prompting import prompts_digest
from selu.reporting.episodes import Practice, picture_uri, read_columns
from selu.reporting.trends import guard_trends, trends
from selu.reporting.views import ArtifactLine, Comparison, Curve, DatasetView, Report, Sample, Seen, StageView
from selu.rounds import (
    Round,
    StageName,
    decisions,
    find_metric,
    gains_from_base,
    round_metrics,
    rounds_of_run,
    why_stopped,
)
from selu.seen_rows import PICTURE, ROW, SeenRow
from selu.statistics import Rate
from selu.store import ArtifactRef, OracleRef, Store
from selu.worlds.tasks import THREE_STEPS, THREE_STEPS_LIMIT

__all__ = ["gather"]

_SAMPLES_OF_A_SOURCE = 3
_MOST_SAMPLES = 12

_STAGES: dict[StageName, tuple[str, str]] = {
    "rollout": ("Rollout", "The actor tries drawn instructions in its home. Nobody tells it whether it succeeded."),
    "frames": ("Frame extraction", "The pictures that the critic will look at are picked from each episode."),
    "self_asking": (
        "Self-asking",
        "The critic turns each instruction into questions, answers them and so gives a verdict.",
    ),
    "hindsight": (
        "Hindsight relabeling",
        "What a failed episode did achieve becomes its new instruction; other claims, about its pictures and once about those "
        "of the critic's corpus, are judged to learn from.",
    ),
    "critic_dataset": (
        "Dataset version",
        "What the critic is sure of, asked in several ways, becomes its training rows.",
    ),
    "critic_finetuning": ("Critic fine-tuning", "The critic learns from its own labels (a LoRA adapter)."),
    "rejudging": (
        "Re-judging",
        "The critic that was taken into use judges and relabels every episode again; that is the actor's data.",
    ),
    "actor_finetuning": (
        "Actor fine-tuning",
        "The actor learns from what that critic accepted (a LoRA adapter).",
    ),
    "evaluation": ("Evaluation", "Both meet frozen tests. The truth is read here, and nowhere before."),
}


def gather(store: Store, finished: Round) -> Report:
    """Everything about a finished round that its report shows.

    Raises:
        ArtifactError: something that the round made is missing, altered or not readable.
    """
    rows = round_metrics(store, finished)
    comparisons = _comparisons(rows)
    run = [(item, round_metrics(store, item)) for item in rounds_of_run(store, finished)]
    home = Practice(store, finished)
    trained = [
        (who, ref)
        for who, ref in (
            ("critic", finished.critic_candidate or finished.critic_adapter),
            ("actor", finished.actor_candidate or finished.actor_adapter),
        )
        if ref is not None
    ]
    curves = tuple(curve for who, ref in trained if (curve := _curve(store, who, ref)) is not None)
    seen = tuple(row for who, ref in trained if (row := _seen(store, who, ref)) is not None)
    datasets = tuple(
        _dataset(store, who, ref)
        for who, ref in (("critic", finished.critic_dataset), ("actor", finished.actor_dataset))
        if ref is not None
    )
    settings = finished.settings
    return Report(
        title=f"{finished.run}, round {finished.round}",
        run=finished.run,
        round=finished.round,
        rounds=settings.rounds,
        seed=settings.seed,
        started=_moment(finished.started),
        finished=_moment(finished.finished),
        headline=_headline(comparisons, finished.round, by_truth=settings.self_asking.by == "oracle"),
        sentences=(
            *_since_base(gains_from_base(store, [item for item, _ in run]), finished.round),
            *_refusals(finished),
            *_sentences(comparisons, rows),
        ),
        facts=home.facts(datasets),
        comparisons=comparisons,
        decisions=tuple(decisions(rows, finished)),
        trends=trends(run),
        guard_trends=guard_trends([item for item, _ in run]),
        stopped=why_stopped([item for item, _ in run]),
        references=_references(rows),
        metrics=tuple(rows),
        stages=tuple(
            StageView(
                number=number,
                title=_STAGES[stage.name][0],
                what=_STAGES[stage.name][1],
                seconds=stage.seconds,
                made_in_seconds=stage.made_in_seconds,
                cached=stage.cached,
                reused=stage.reused,
                tasks=stage.tasks,
            )
            for number, stage in enumerate(finished.stages, 1)
        ),
        pairs=home.pairs(),
        hindsight=settings.hindsight.enabled,
        labels_by=settings.self_asking.by,
        rehearses=settings.dataset.replay > 0,
        labels=home.labels(rows),
        curves=curves,
        seen=seen,
        datasets=datasets,
        artifacts=_artifacts(store, finished),
        revisions=tuple(sorted(finished.revisions.items())),
        configuration=yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        prompts=_prompts(),
        prompts_digest=prompts_digest(),
        prompts_changed=_prompts_changed(store, finished),
        embedded_model=settings.actor.path == settings.critic.path == "embedded",
        stand_in=settings.world.name if settings.world.embedded and ":" not in settings.world.name else None,
    )


def _moment(iso: str) -> str:
    """``2026-01-31 12:45 UTC`` of an ISO time."""
    return f"{iso[:16].replace('T', ' ')} UTC"


# Results -------------------------------------------------------------------------------------------------------------

_RESULTS = (
    (
        "critic",
        "direct",
        "balanced_accuracy",
        "Critic, asked directly",
        "“Was it done?” Right verdicts, what was done and what was not weighing alike (balanced accuracy); guessing gives 50 %.",
    ),
    (
        "critic",
        "self_asking",
        "balanced_accuracy",
        "Critic, by self-asking",
        "The same verdict through its own questions; an unsure one counts half.",
    ),
    (
        "critic",
        "direct:own",
        "balanced_accuracy",
        "Critic, asked directly about the actor's own",
        "On what the present actor itself does, in place of the frozen mixture; classes weigh alike.",
    ),
    ("actor", "selu", "success_rate", "Actor", "Tasks whose goal holds when the episode ends."),
    (
        "actor",
        THREE_STEPS,
        "success_rate",
        "Actor, three steps",
        f"All three goals hold when the episode ends, within {THREE_STEPS_LIMIT} actions.",
    ),
)


def _comparison(
    rows: Sequence[MetricRow], subject: str, method: str, metric: str, probe: str, label: str, note: str
) -> Comparison:
    before, after, gain = (
        find_metric(rows, subject=subject, phase=phase, probe=probe, method=method, metric=name)
        for phase, name in (("before", metric), ("after", metric), ("after", f"{metric}_gain"))
    )
    marks = () if method == THREE_STEPS else _marks(rows, subject, probe)
    return Comparison(subject, label, note, probe, before, after, gain, marks)


def _comparisons(rows: Sequence[MetricRow]) -> tuple[Comparison, ...]:
    """The headline's table: each way of measuring on A and on B, and what else was asked in general."""
    found = [
        _comparison(rows, subject, method, metric, probe, label, note)
        for subject, method, metric, label, note in _RESULTS
        for probe in ("A", "B")
    ]
    general = {
        (row.method, row.metric, row.probe): None
        for row in rows
        if row.subject == "general" and not row.metric.endswith("_gain")
    }
    found += [
        _comparison(
            rows, "general", method, metric, probe, f"General questions, {method}", f"Does it forget? {_plain(metric)}."
        )
        for method, metric, probe in general
    ]
    return tuple(item for item in found if item.before or item.after)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _marks(rows: Sequence[MetricRow], subject: str, probe: str) -> tuple[tuple[str, float], ...]:
    if subject == "critic":
        return (("guessing", 0.5),)
    if subject != "actor":
        return ()
    found = (
        find_metric(rows, subject="actor", phase="before", probe=probe, method=method, metric="success_rate")
        for method in ("random", "planner")
    )
    return tuple((f"{row.method} policy", row.rate) for row in found if row is not None)


def _references(rows: Sequence[MetricRow]) -> tuple[Comparison, ...]:
    """Floors, ceilings and blinds."""
    wanted = {"actor": ("success_rate", "selu"), "critic": ("balanced_accuracy", "direct")}
    kinds = {
        (row.subject, row.method, row.probe): None
        for row in rows
        if row.subject in wanted
        and row.probe in ("A", "B")
        and row.metric == wanted[row.subject][0]
        and row.method not in ("direct", "self_asking", "direct:own", "selu", THREE_STEPS)
    }
    labels = {
        "random": ("Random policy", "the actor's floor"),
        "planner": ("Planner", "the actor's ceiling: it knows the truth"),
        "noisy planner": ("Planner with 30 % random actions", "between floor and ceiling"),
        "blind:blank": ("Critic before a blank picture", "what the words alone give away"),
        "blind:no_image": ("Critic without a picture", "what the words alone give away"),
        "blind:shuffled": ("Critic before another episode's picture", "what any picture gives away"),
    }
    return tuple(
        _comparison(rows, subject, method, wanted[subject][0], probe, *labels.get(method, (method, "")))
        for subject, method, probe in sorted(kinds)
    )


def _share(value: float) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if math.isfinite(value) else "–"


def _pick(comparisons: Iterable[Comparison], label: str, probe: str) -> Comparison | None:
    return next((item for item in comparisons if (item.label, item.probe) == (label, probe)), None)


def _headline(comparisons: Sequence[Comparison], number: int, *, by_truth: bool) -> str:
    """The result in one sentence, without judging it."""
    critic, actor = _pick(comparisons, "Critic, asked directly", "A"), _pick(comparisons, "Actor", "A")
    parts = []
    for item, who, what in ((critic, "the critic", "of verdicts right"), (actor, "the actor", "of tasks done")):
        if item is None:
            continue
        if item.before and item.after:
            parts.append(f"{who} went from {_share(item.before.rate)} to {_share(item.after.rate)} {what}")
        elif row := item.before or item.after:
            parts.append(f"{who} stands at {_share(row.rate)} {what}")
    if not parts:
        return "This round has no figures of the probe sets."
    time = "In one round" if number == 1 else f"In round {number}"
    how = "on labels by the truth (an upper bound, no self-learning)" if by_truth else "without reward or human label"
    return f"{time} {how}, {' and '.join(parts)}."


def _since_base(gains: Mapping[tuple[str, str], Rate], number: int) -> tuple[str, ...]:
    """Of a later round: what all rounds together gained."""
    if number == 1 or not gains:
        return ()
    told = [f"{who} {_points(rate.rate)}{_interval(rate)} on probe {probe}" for (who, probe), rate in gains.items()]
    return (f"Over all {number} rounds, beside the base model: {'; '.join(told)}.",)


def _points(value: float) -> str:
    """``+23.8 points``, with a true minus sign."""
    return f"{100 * value:+.1f} points".replace("-", "\u2212")


def _interval(rate: Rate) -> str:
    """`` (17.1 to 29.5)``, or nothing."""
    if not math.isfinite(rate.low):
        return ""
    return f" ({100 * rate.low:.1f} to {100 * rate.high:.1f})".replace("-", "\u2212")


def _refusals(finished: Round) -> tuple[str, ...]:
    """What was trained and is not in use."""
    return tuple(
        f"The new {item.who} was refused, so that “after” is the {item.who} from before."
        for item in finished.guards
        if not item.passed
    )


def _sentences(comparisons: Sequence[Comparison], rows: Sequence[MetricRow]) -> tuple[str, ...]:
    """What to make of the headline: whether the change is measurable, and whether it carries over."""
    found = []
    for label, who in (("Critic, asked directly", "critic"), ("Actor", "actor")):
        for probe, where in (("A", "in the rooms it practised in"), ("B", "in rooms it never visited")):
            item = _pick(comparisons, label, probe)
            if item is None or item.gain is None or not math.isfinite(item.gain.rate):
                continue
            low, high = item.gain.low, item.gain.high
            size = f"{100 * item.gain.rate:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}".replace(
                "-", "\u2212"
            )
            if not (math.isfinite(low) and math.isfinite(high)):
                change, size = (
                    "changed" if item.gain.rate else "did not change",
                    _points(item.gain.rate),
                )
            elif low > 0:
                change = "got better"
            elif high < 0:
                change = "got worse"
            else:
                change = "did not change measurably"
            found.append(f"The {who} {change} {where} ({size}).")
    for item in comparisons:
        lost = item.gain is not None and math.isfinite(item.gain.high) and item.gain.high < 0
        if lost and item.gain is not None and item.label not in ("Critic, asked directly", "Actor"):
            found.append(f"It cost something: {item.label}, probe {item.probe}, got worse ({_points(item.gain.rate)}).")
    labels = find_metric(rows, subject="labels", phase="after", probe="learning", method="selu", metric="false_rate")
    if labels is not None and labels.n:
        interval = f"95 % interval {100 * labels.low:.1f} to {100 * labels.high:.1f}"
        found.append(
            f"Of the {labels.n} “done” labels that taught the actor, {_share(labels.rate)} were false ({interval})."
        )
    return tuple(found)


# Training ------------------------------------------------------------------------------------------------------------


def _curve(store: Store, who: str, ref: ArtifactRef) -> Curve | None:
    path = store.path(ref) / "curves.parquet"
    if not path.exists():
        return None
    there = pq.read_schema(path).names
    rows = read_columns(path, [name for name in ("step", "loss", "validation_loss") if name in there])
    if not rows:
        return None
    validation = ((row["step"], row.get("validation_loss")) for row in rows)
    return Curve(
        who,
        tuple(row["step"] for row in rows),
        tuple(row["loss"] for row in rows),
        tuple((step, loss) for step, loss in validation if loss is not None and math.isfinite(loss)),
    )


def _seen(store: Store, who: str, ref: ArtifactRef) -> Seen | None:
    """None of an adapter from before rows were kept, or whose row could not be read back."""
    folder = store.path(ref)
    if not (folder / ROW).exists():
        return None
    try:
        row, picture = SeenRow.model_validate_json((folder / ROW).read_bytes()), (folder / PICTURE).read_bytes()
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"the row that the {who} saw, in {folder}, cannot be read: {error}") from error
    return Seen(who, row, picture_uri(picture))


def _dataset(store: Store, who: str, ref: ArtifactRef) -> DatasetView:
    """Counts of a dataset version, and the first rows of each source."""
    path = store.path(ref) / "data" / f"{who}-train.parquet"
    sources: Counter[str] = Counter()
    completions: Counter[str] = Counter()
    samples: dict[str, list[Sample]] = {}
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=500, columns=["prompt", "completion", "images", "source"]):
                said = [turns[0]["content"] for turns in batch.column("completion").to_pylist()]
                origin = batch.column("source").to_pylist()
                sources.update(origin)
                completions.update(said)
                for place, (source, completion) in enumerate(zip(origin, said, strict=True)):
                    few = samples.setdefault(source, [])
                    # Rows that differ in what they teach tell more than the first ones would.
                    if len(few) < _SAMPLES_OF_A_SOURCE and completion not in {row.completion for row in few}:
                        image = batch.column("images")[place].as_py()[0]["bytes"]
                        prompt = batch.column("prompt")[place].as_py()[0]["content"]
                        few.append(Sample(picture_uri(image), prompt, completion, source))
    except (pa.ArrowException, OSError, KeyError, IndexError, TypeError) as error:
        raise ArtifactError(f"the dataset {path} cannot be read: {error}") from error
    by_source = [rows for _, rows in sorted(samples.items())]
    turns = [rows[place] for place in range(_SAMPLES_OF_A_SOURCE) for rows in by_source if place < len(rows)]
    return DatasetView(
        who=who,
        rows=sum(sources.values()),
        sources=tuple(sources.most_common()),
        completions=tuple(completions.most_common(8)),
        samples=tuple(turns[:_MOST_SAMPLES]),
        digest=ref.digest,
    )


# Lineage -------------------------------------------------------------------------------------------------------------

_ROLES: tuple[tuple[str, str], ...] = (
    ("tasks", "tasks"),
    ("episodes", "episodes"),
    ("oracle", "the truth (sealed)"),
    ("frames", "frames the critic looks at"),
    ("judgements", "first judging"),
    ("relabels", "relabels of the first judging"),
    ("contrasts", "further judgements"),
    ("corpus_pictures", "pictures of the corpus"),
    ("corpus_judgements", "judgements on these"),
    ("critic_dataset", "critic's dataset version"),
    ("critic_candidate", "critic's new adapter"),
    ("critic_adapter", "critic's adapter in use"),
    ("rejudgements", "re-judging"),
    ("rerelabels", "relabels of the re-judging"),
    ("actor_dataset", "actor's dataset version"),
    ("actor_candidate", "actor's new adapter"),
    ("actor_adapter", "actor's adapter in use"),
    ("guard_artifacts", "guards' decisions"),
    ("metrics", "figures"),
)


def _artifacts(store: Store, finished: Round) -> tuple[ArtifactLine, ...]:
    lines = []
    for name, role in _ROLES:
        value: Any = getattr(finished, name)
        listed = value if isinstance(value, tuple) else (value,)
        refs: Sequence[ArtifactRef | OracleRef] = [ref for ref in listed if ref is not None]
        for number, ref in enumerate(refs, 1):
            manifest = store.manifest(ref)
            lines.append(
                ArtifactLine(
                    role=role if len(refs) == 1 else f"{role} {number}/{len(refs)}",
                    kind=ref.kind,
                    key=ref.key,
                    digest=manifest.digest,
                    stage=str(manifest.provenance.get("stage", "")),
                    size=manifest.size,
                    seconds=manifest.seconds,
                )
            )
    return tuple(lines)


def _prompts() -> tuple[tuple[str, str], ...]:
    """The prompt files and what stands in them."""
    files = sorted((resources.files("selu") / "prompts").iterdir(), key=lambda entry: entry.name)
    return tuple((entry.name, entry.read_text(encoding="utf-8")) for entry in files if entry.name.endswith(".txt"))


def _prompts_changed(store: Store, finished: Round) -> bool:
    """Whether the round was made with other prompt files than there are now."""
    for ref in finished.judgements[:1]:
        config = store.manifest(ref).provenance.get("config")
        if isinstance(config, dict) and "prompts" in config:
            return bool(config["prompts"] != prompts_digest())
    return False
