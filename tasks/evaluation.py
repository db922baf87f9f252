"""Step 9: the only tasks that are given ground truth (:class:`~selu.store.OracleRef`).

They freeze a balanced probe of trajectories for the critic, and turn recordings and judgements into figures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from selu.config import EvaluationSettings
from selu.errors import ArtifactError
from selu.evaluation import (
    ItemOutcome,
    Judged,
    MetricRow,
    Phase,
    Probe,
    Series,
    actor_metrics,
    balanced_difference,
    critic_label_metrics,
    critic_metrics,
    difference_metric,
    error_correlation,
    label_error_correlation,
    label_metrics,
)
from selu.records import Episode, Frame, OracleEpisode, Relabel, Verdict
from selu.rounds import Workspace
from selu.store import ArtifactRef, OracleRef, Store, read_table, write_table
from selu.tasks.judging import OWN, ProbeVerdict, read_probe
from selu.tasks.progress import Meter
from selu.tasks.stages import (
    Made,
    MadeWithTruth,
    Shard,
    Stage,
    Value,
    make,
    make_with_truth,
    read_all,
    read_episodes,
    read_frames,
    read_oracle,
    read_steps,
    stage_task,
)
from selu.worlds.tasks import THREE_STEPS, kind_of_instruction

__all__ = [
    "ActorRun",
    "CriticRun",
    "LabelRun",
    "OwnRun",
    "freeze_critic_probe",
    "measure_actor",
    "measure_critic",
    "measure_labels",
    "read_judged",
]

CRITIC_PROBE = Stage(name="critic-probe", version=1, modules=())
_MODULES = ("selu.evaluation", "selu.statistics")
_PAIRED_WAYS = ("direct", "self_asking")
"""Ways of judging whose gain is measured, trajectory by trajectory; the blinds are there for comparison only."""
ACTOR_METRICS = Stage(name="actor-metrics", version=2, modules=_MODULES)
CRITIC_METRICS = Stage(name="critic-metrics", version=2, modules=_MODULES)
LABEL_METRICS = Stage(name="label-metrics", version=2, modules=_MODULES)


def _rank(seed: int, episode_id: str) -> str:
    return hashlib.sha256(f"{seed} {episode_id}".encode()).hexdigest()


def balanced_choice(
    candidates: Mapping[str, Sequence[Episode]], success: Mapping[str, bool | None], count: int, seed: int
) -> list[Episode]:
    """`count` episodes, half of them successes, each half taken in turn from every policy.

    `candidates` are episodes by the policy that played them. In turn, so that style (a tidy planner, a wandering random
    policy) tells as little as possible about success. Where a half has too few, the other is cut to its size.
    """
    halves: list[list[Episode]] = []
    for wanted in (True, False):
        queues = [
            sorted(
                (row for row in rows if success[row.episode_id] is wanted), key=lambda row: _rank(seed, row.episode_id)
            )
            for _, rows in sorted(candidates.items())
        ]
        turns = [
            queue[place] for place in range(max(map(len, queues), default=0)) for queue in queues if place < len(queue)
        ]
        halves.append(turns)
    size = min(count // 2, *(len(half) for half in halves))
    return sorted((row for half in halves for row in half[:size]), key=lambda row: _rank(seed, row.episode_id))


@stage_task(CRITIC_PROBE)
def freeze_critic_probe(
    workspace: Workspace,
    shard: Shard,
    recordings: Mapping[str, Sequence[ArtifactRef]],
    oracle: Mapping[str, Sequence[OracleRef]],
    count: int,
    seed: int,
) -> MadeWithTruth:
    """Choose a balanced set of trajectories from those of several policies, by the policies' names, and freeze it.

    Only the last frame of each is kept: what a critic judges is how a trajectory ended.
    """

    def compute(path: Path, report: Meter) -> Callable[[Path], None]:
        store = workspace.store()
        candidates = {name: read_episodes(store, refs) for name, refs in recordings.items()}
        known, _ = read_oracle(store, [ref for refs in oracle.values() for ref in refs])
        success = {row.episode_id: row.success is True for row in known}
        chosen = balanced_choice(candidates, success, count, seed)
        if not chosen:
            raise ArtifactError(
                "the scripted policies recorded no success or no failure, so no balanced probe can be made for the "
                "critic; raise evaluation.critic_episodes_a and evaluation.critic_episodes_b"
            )
        last = {(row.episode_id, row.length) for row in chosen}
        frames = {
            frame.episode_id: frame
            for refs in recordings.values()
            for frame in read_frames(store, refs)
            if (frame.episode_id, frame.frame_index) in last
        }
        write_table(path / "probe_episodes.parquet", chosen, Episode)
        write_table(path / "probe_frames.parquet", [frames[row.episode_id] for row in chosen], Frame)

        def write_truth(sealed: Path) -> None:
            write_table(
                sealed / "probe_truth.parquet",
                [OracleEpisode(episode_id=row.episode_id, success=success[row.episode_id]) for row in chosen],
                OracleEpisode,
            )

        return write_truth

    return make_with_truth(
        workspace,
        CRITIC_PROBE,
        shard,
        ("critic_probe", "oracle_critic_probe"),
        compute,
        config={"count": count, "seed": seed, "policies": sorted(recordings)},
        inputs=[
            *(ref for _, refs in sorted(recordings.items()) for ref in refs),
            *(ref for _, refs in sorted(oracle.items()) for ref in refs),
        ],
    )


# Figures -------------------------------------------------------------------------------------------------------------


class ActorRun(Value):
    """One policy's recordings on a probe set."""

    phase: Phase
    probe: Probe
    method: str = Field(
        description="selu; three_steps: the same actor on tasks of three steps; or a scripted policy: floor and ceiling"
    )
    episodes: tuple[ArtifactRef, ...]
    oracle: tuple[OracleRef, ...]


class CriticRun(Value):
    """One critic's judgements on a probe set."""

    phase: Phase
    probe: Probe
    trajectories: ArtifactRef
    truth: OracleRef
    judgements: ArtifactRef


class OwnRun(Value):
    """One critic's direct verdicts on what the current actor played on a probe set."""

    phase: Phase
    probe: Probe
    episodes: tuple[ArtifactRef, ...]
    oracle: tuple[OracleRef, ...]
    judgements: ArtifactRef


class LabelRun(Value):
    """What one judging of the learning episodes labelled."""

    phase: Phase
    judgements: tuple[ArtifactRef, ...]
    relabels: tuple[ArtifactRef, ...]
    contrasts: tuple[ArtifactRef, ...] = Field(default=(), description="further judgements that train the critic")


def _write(path: Path, rows: Sequence[MetricRow], items: Sequence[ItemOutcome] | None = None) -> None:
    write_table(path / "metrics.parquet", rows, MetricRow)
    if items is not None:
        write_table(path / "outcomes.parquet", items, ItemOutcome)


@stage_task(ACTOR_METRICS)
def measure_actor(
    workspace: Workspace,
    shard: Shard,
    runs: Sequence[ActorRun],
    evaluation: EvaluationSettings,
    run: str,
    round_number: int,
    seed: int,
) -> Made:
    """Rates of success and more of every policy, and the paired gain from `before` to `after` on each probe.

    Scripted policies count on the tasks that the actor played too; they may have played fewer, as their n says.
    """

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        rows: list[MetricRow] = []
        items: list[ItemOutcome] = []
        outcomes: dict[tuple[Probe, str, Phase], list[tuple[str, str, bool]]] = {}
        acted = {
            item.probe: {row.task_id for row in read_episodes(store, item.episodes)}
            for item in runs
            if item.method == "selu"
        }
        for item in runs:
            series = Series(run, round_number, "actor", item.phase, item.probe, item.method)
            wanted = None if item.method == THREE_STEPS else acted.get(item.probe)
            episodes = [row for row in read_episodes(store, item.episodes) if wanted is None or row.task_id in wanted]
            counted = {row.episode_id for row in episodes}
            truth, _ = read_oracle(store, item.oracle)
            steps = [row for row in read_steps(store, item.episodes) if row.episode_id in counted]
            rows += actor_metrics(series, episodes, steps, truth, seed=seed, samples=evaluation.bootstrap)
            success = {row.episode_id: row.success for row in truth}
            outcomes[item.probe, item.method, item.phase] = [
                (row.task_id, row.scene, success.get(row.episode_id) is True) for row in episodes
            ]
            items += [
                series.outcome(
                    row.task_id,
                    row.scene,
                    kind_of_instruction(row.instruction),
                    float(success.get(row.episode_id) is True),
                )
                for row in episodes
            ]
        for (probe, method, phase), after in outcomes.items():
            before = outcomes.get((probe, method, "before"))
            if phase == "before" or before is None:
                continue
            if [task for task, _, _ in before] != [task for task, _, _ in after]:
                raise ArtifactError(f"the actor played other tasks before and after on probe set {probe}")
            rows.append(
                difference_metric(
                    Series(run, round_number, "actor", phase, probe, method),
                    "success_rate",
                    [float(done) for _, _, done in before],
                    [float(done) for _, _, done in after],
                    [scene for _, scene, _ in after],
                    seed=seed,
                    samples=evaluation.bootstrap,
                )
            )
        _write(path, rows, items)

    return make(
        workspace,
        ACTOR_METRICS,
        shard,
        "metrics",
        compute,
        config={
            "runs": [[item.phase, item.probe, item.method, len(item.episodes)] for item in runs],
            "bootstrap": evaluation.bootstrap,
            "run": run,
            "round": round_number,
            "seed": seed,
        },
        inputs=[*(ref for item in runs for ref in item.episodes), *(ref for item in runs for ref in item.oracle)],
    )


def read_judged(
    store: Store, trajectories: ArtifactRef, probe_truth: OracleRef, judgements: ArtifactRef
) -> dict[str, list[Judged]]:
    """A critic's judgements beside the truth, by method, in the order of the probe."""
    episodes, _ = read_probe(store, trajectories)
    truth = {
        row.episode_id: row.success is True
        for row in read_table(store.path(probe_truth) / "probe_truth.parquet", OracleEpisode)
    }
    rows = read_table(store.path(judgements) / "probe_verdicts.parquet", ProbeVerdict)
    said = {(row.method, row.episode_id): row.verdict for row in rows}
    methods = list(dict.fromkeys(row.method for row in rows))
    return {
        method: [Judged(said[method, row.episode_id], truth[row.episode_id], row.scene) for row in episodes]
        for method in methods
    }


def _own_metrics(
    store: Store, runs: Sequence[OwnRun], run: str, round_number: int, seed: int, samples: int
) -> list[MetricRow]:
    """Figures of the critics on the current actor's own trajectories, and their paired gain."""
    rows: list[MetricRow] = []
    judged: dict[tuple[Probe, Phase], list[Judged]] = {}
    for item in runs:
        success = {row.episode_id: row.success for row in read_oracle(store, item.oracle)[0]}
        said = {
            row.episode_id: row.verdict
            for row in read_table(store.path(item.judgements) / "probe_verdicts.parquet", ProbeVerdict)
        }
        judged[item.probe, item.phase] = [
            Judged(said[row.episode_id], success[row.episode_id] is True, row.scene)
            for row in read_episodes(store, item.episodes)
        ]
    for (probe, phase), judgements in judged.items():
        series = Series(run, round_number, "critic", phase, probe, OWN)
        rows += critic_metrics(series, judgements, seed=seed, samples=samples)
        before = judged.get((probe, "before"))
        if phase != "before" and before is not None:
            rows.append(balanced_difference(series, before, judgements, seed=seed, samples=samples))
    return rows


@stage_task(CRITIC_METRICS)
def measure_critic(
    workspace: Workspace,
    shard: Shard,
    runs: Sequence[CriticRun],
    evaluation: EvaluationSettings,
    run: str,
    round_number: int,
    seed: int,
    own: Sequence[OwnRun] = (),
) -> Made:
    """Balanced accuracy and more of every way of judging, the paired gain, and how errors go together."""

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        rows: list[MetricRow] = []
        items: list[ItemOutcome] = []
        judged: dict[tuple[Probe, Phase], dict[str, list[Judged]]] = {}
        for item in runs:
            ways = judged[item.probe, item.phase] = read_judged(store, item.trajectories, item.truth, item.judgements)
            for method, judgements in ways.items():
                series = Series(run, round_number, "critic", item.phase, item.probe, method)
                rows += critic_metrics(series, judgements, seed=seed, samples=evaluation.bootstrap)
            for method in _PAIRED_WAYS:
                series = Series(run, round_number, "critic", item.phase, item.probe, method)
                items += [
                    series.outcome(
                        row.episode_id,
                        row.scene,
                        kind_of_instruction(row.instruction),
                        judgement.credit,
                        judgement.truth,
                    )
                    for row, judgement in zip(read_probe(store, item.trajectories)[0], ways[method], strict=True)
                ]
            series = Series(run, round_number, "critic", item.phase, item.probe, "direct+self_asking")
            rows.append(error_correlation(series, ways["direct"], ways["self_asking"]))
        rows += _own_metrics(store, own, run, round_number, seed, evaluation.bootstrap)
        for (probe, phase), after in judged.items():
            before = judged.get((probe, "before"))
            if phase == "before" or before is None:
                continue
            for method in _PAIRED_WAYS:
                rows.append(
                    difference_metric(
                        Series(run, round_number, "critic", phase, probe, method),
                        # The probe is balanced, so the mean of what each judgement earned is the balanced accuracy.
                        "balanced_accuracy",
                        [item.credit for item in before[method]],
                        [item.credit for item in after[method]],
                        [item.scene for item in after[method]],
                        seed=seed,
                        samples=evaluation.bootstrap,
                    )
                )
        _write(path, rows, items)

    return make(
        workspace,
        CRITIC_METRICS,
        shard,
        "metrics",
        compute,
        config={
            "runs": [[item.phase, item.probe] for item in runs],
            "own": [[item.phase, item.probe] for item in own],
            "bootstrap": evaluation.bootstrap,
            "run": run,
            "round": round_number,
            "seed": seed,
        },
        inputs=[
            *(ref for item in runs for ref in (item.trajectories, item.truth, item.judgements)),
            *(ref for item in own for ref in item.episodes),
            *(ref for item in own for ref in item.oracle),
            *(item.judgements for item in own),
        ],
    )


@stage_task(LABEL_METRICS)
def measure_labels(
    workspace: Workspace,
    shard: Shard,
    episodes: Sequence[ArtifactRef],
    oracle: Sequence[OracleRef],
    runs: Sequence[LabelRun],
    evaluation: EvaluationSettings,
    run: str,
    round_number: int,
    seed: int,
) -> Made:
    """How many of the labels on the learning episodes are false, how many episodes got one, how the actor did on them
    and how the critic judged its trajectories."""

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        played = read_episodes(store, episodes)
        truth, facts = read_oracle(store, oracle)
        series = Series(run, round_number, "actor", "before", "learning", "selu")
        steps = read_steps(store, episodes)
        rows = actor_metrics(series, played, steps, truth, seed=seed, samples=evaluation.bootstrap)
        success = {row.episode_id: row.success for row in truth}
        for item in runs:
            verdicts = read_all(store, item.judgements, "verdicts", Verdict)
            relabels = read_all(store, item.relabels, "relabels", Relabel)
            series = Series(run, round_number, "labels", item.phase, "learning", "selu")
            rows += label_metrics(series, played, verdicts, relabels, truth, facts)
            rows += label_error_correlation(replace(series, method="direct+self_asking"), played, verdicts, truth)
            if item.contrasts:
                contrasts = read_all(store, item.contrasts, "verdicts", Verdict)
                rows += critic_label_metrics(series, played, [*verdicts, *contrasts], relabels, truth, facts)
            own = {(row.episode_id, row.instruction, row.frame_index): row.verdict for row in verdicts}
            judged = [
                Judged(
                    own.get((row.episode_id, row.instruction, row.length), "unsure"),
                    done,
                    row.scene,
                )
                for row in played
                if (done := success.get(row.episode_id, False)) is not None
            ]
            series = Series(run, round_number, "critic", item.phase, "learning", "self_asking")
            rows += critic_metrics(series, judged, seed=seed, samples=evaluation.bootstrap)
        _write(path, rows)

    return make(
        workspace,
        LABEL_METRICS,
        shard,
        "metrics",
        compute,
        config={
            "runs": [[item.phase, len(item.judgements), len(item.contrasts)] for item in runs],
            "bootstrap": evaluation.bootstrap,
            "run": run,
            "round": round_number,
            "seed": seed,
        },
        inputs=[
            *episodes,
            *oracle,
            *(ref for item in runs for ref in (*item.judgements, *item.relabels, *item.contrasts)),
        ],
    )
