"""Step 9: actor and critic on the two frozen probe sets and on general questions, before and after.

Probe set A lies in the learning scenes, B in the transfer scenes; the general questions are about both. Nothing here
depends on a run's seed: every method and every seed meets the same tasks, the same trajectories and the same questions.
Tasks of three steps, which nobody practises, lie in the scenes of A and have figures of their own.
Floor and ceiling (the random policy and the planner) are measured on the first of the actor's own tasks: as many as it
takes to record the critic's trajectories, which their n says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from prefect import flow, get_run_logger
from pydantic import Field

from selu.config import SelfAskingSettings, Settings
from selu.evaluation import Phase
from selu.flows.crashes import note_process
from selu.flows.ledger import Account, one_at_a_time
from selu.memory import Memory
from selu.rounds import Workspace
from selu.seeds import derived_seed
from selu.store import ArtifactRef, OracleRef
from selu.tasks.checks import check_settings
from selu.tasks.evaluation import (
    ActorRun,
    CriticRun,
    LabelRun,
    OwnRun,
    freeze_critic_probe,
    measure_actor,
    measure_critic,
    measure_labels,
)
from selu.tasks.general import GeneralRun, answer_general_questions, measure_general
from selu.tasks.judging import judge_own, judge_probe
from selu.tasks.rollout import PolicyChoice, freeze_probe, roll_out_shard
from selu.tasks.stages import Model, Outcome, Shard, Value, shards
from selu.worlds.tasks import THREE_STEPS, THREE_STEPS_LIMIT, TRAJECTORIES_A_TASK, has_probes, probe_set

__all__ = ["MIXED_POLICIES", "Candidates", "Contestants", "Evaluated", "Learned", "asking_of_all", "evaluation"]

_SEED = derived_seed(0, "evaluation")

MIXED_POLICIES = {
    "planner": PolicyChoice(kind="planner"),
    "noisy planner": PolicyChoice(kind="planner", noise=0.3),
    "near miss": PolicyChoice(kind="near_miss"),
    "sibling": PolicyChoice(kind="sibling"),
    "random": PolicyChoice(kind="random"),
}
"""Who plays the trajectories that the critic is tested on. The planner is also the actor's ceiling, the random policy
its floor; near miss and sibling fail by design, in ways that are hard to tell from success."""


def asking_of_all(settings: SelfAskingSettings) -> SelfAskingSettings:
    """How a critic asks itself in an evaluation: alike for every method, whoever judged what it learned from.

    What is set for another judge (its confidence, its votes) is not about questions.
    """
    if settings.by == "self_asking":
        return settings
    about_questions = {"paraphrases", "agreement", "max_questions", "max_new_tokens"}
    return SelfAskingSettings.model_validate(settings.model_dump(include=about_questions))


class Contestants(Value):
    """The two models of one phase."""

    actor: Model
    critic: Model


class Candidates(Value):
    """Models whose new adapters guards refused: what they would have been, for the report to say who was right."""

    actor: Model | None = None
    critic: Model | None = None


class Learned(Value):
    """What was collected and labelled in a round, for the quality of its labels."""

    episodes: tuple[ArtifactRef, ...]
    oracle: tuple[OracleRef, ...]
    labels: tuple[LabelRun, ...]


class Evaluated(Value):
    """What an evaluation made."""

    metrics: tuple[ArtifactRef, ...]
    made: tuple[Outcome, ...] = Field(description="by all its tasks")


@flow(
    name="evaluation",
    flow_run_name="evaluation of {run} round {round_number}",
    task_runner=one_at_a_time(),
    persist_result=False,
    on_running=[note_process],
)
def evaluation(
    settings: Settings,
    before: Contestants,
    after: Contestants | None,
    learned: Learned | None,
    run: str,
    round_number: int,
    rejected: Candidates | None = None,
) -> Evaluated:
    """Evaluate models, and the labels that a round made if `learned` says which; `rejected` ones under that phase."""
    check_settings(settings, ["probes"])
    workspace, sizes = Workspace.of(settings), settings.evaluation
    asking = asking_of_all(settings.self_asking)
    account = Account()
    actor_runs: list[ActorRun] = []
    critic_runs: list[CriticRun] = []
    own_runs: list[OwnRun] = []
    world = settings.world.name
    probes: list[tuple[Literal["A", "B"], str, int, int]] = [
        ("A", probe_set(world, "a"), sizes.actor_episodes_a, sizes.critic_episodes_a),
        ("B", probe_set(world, "b"), sizes.actor_episodes_b, sizes.critic_episodes_b),
    ]
    if not has_probes(world):
        get_run_logger().warning(
            f"there are no frozen probes of {world}, so there are no figures of probe sets A and B"
        )
        probes = []
    contestants: list[tuple[Phase, Contestants | Candidates]] = [("before", before)]
    contestants += [("after", after)] if after is not None else []
    contestants += [("rejected", rejected)] if rejected is not None else []
    actors = [(phase, pair.actor) for phase, pair in contestants if pair.actor is not None]
    critics = [(phase, pair.critic) for phase, pair in contestants if pair.critic is not None]

    for probe, name, actor_episodes, critic_episodes in probes:
        if actor_episodes:
            for phase, actor in actors:
                policy = PolicyChoice(model=actor, temperature=sizes.temperature, memory=Memory.of(settings.rollout))
                label = f"evaluation: actor {phase}, probe {probe}"
                episodes, oracle = _record(account, workspace, settings, label, name, actor_episodes, policy)
                actor_runs.append(ActorRun(phase=phase, probe=probe, method="selu", episodes=episodes, oracle=oracle))
        if actor_episodes and probe == "A":
            # One actor for all critics, so that they can be compared: the one that is in use now.
            current = next(item for item in reversed(actor_runs) if item.phase != "rejected")
            for phase, critic in critics:
                own = account.one(
                    judge_own.submit(
                        workspace,
                        Shard(stage=f"evaluation: critic {phase} on the actor's own, probe {probe}"),
                        current.episodes,
                        critic,
                    )
                )
                own_runs.append(
                    OwnRun(
                        phase=phase, probe=probe, episodes=current.episodes, oracle=current.oracle, judgements=own.ref
                    )
                )
        if critic_episodes:
            recordings: dict[str, Sequence[ArtifactRef]] = {}
            truths: dict[str, Sequence[OracleRef]] = {}
            for policy_name, policy in MIXED_POLICIES.items():
                label = f"evaluation: {policy_name}, probe {probe}"
                tasks = -(-critic_episodes // TRAJECTORIES_A_TASK)
                episodes, oracle = _record(account, workspace, settings, label, name, tasks, policy)
                recordings[policy_name], truths[policy_name] = episodes, oracle
                if policy.kind in ("planner", "random"):
                    actor_runs.append(
                        ActorRun(phase="before", probe=probe, method=policy_name, episodes=episodes, oracle=oracle)
                    )
            frozen = account.one(
                freeze_critic_probe.submit(
                    workspace,
                    Shard(stage=f"evaluation: trajectories of probe {probe}"),
                    recordings,
                    truths,
                    critic_episodes,
                    _SEED,
                )
            )
            for phase, critic in critics:
                judged = account.one(
                    judge_probe.submit(
                        workspace,
                        Shard(stage=f"evaluation: critic {phase}, probe {probe}"),
                        frozen.ref,
                        critic,
                        asking,
                        _SEED,
                    )
                )
                critic_runs.append(
                    CriticRun(
                        phase=phase, probe=probe, trajectories=frozen.ref, truth=frozen.oracle, judgements=judged.ref
                    )
                )

    if sizes.three_step_episodes and world == "thor":
        longer = settings.model_copy(
            update={
                "world": settings.world.model_copy(update={"max_steps": THREE_STEPS_LIMIT}),
                "tasks": settings.tasks.model_copy(update={"kinds": ("three_step",)}),
            }
        )
        for phase, actor in actors:
            policy = PolicyChoice(model=actor, temperature=sizes.temperature, memory=Memory.of(settings.rollout))
            label = f"evaluation: actor {phase}, three steps"
            episodes, oracle = _record(
                account, workspace, longer, label, THREE_STEPS, sizes.three_step_episodes, policy
            )
            actor_runs.append(ActorRun(phase=phase, probe="A", method=THREE_STEPS, episodes=episodes, oracle=oracle))

    general_runs: list[GeneralRun] = []
    if sizes.general_questions:
        asked: list[tuple[Literal["actor", "critic"], list[tuple[Phase, Model]]]] = [
            ("actor", actors),
            ("critic", critics),
        ]
        for who, models in asked:
            for phase, model in models:
                answered = account.one(
                    answer_general_questions.submit(
                        workspace,
                        Shard(stage=f"evaluation: general questions, {who} {phase}"),
                        model,
                        sizes.general_questions,
                    )
                )
                general_runs.append(GeneralRun(phase=phase, who=who, answers=answered.ref))

    figures = [
        measure_actor.submit(
            workspace, Shard(stage="evaluation: figures of the actor"), actor_runs, sizes, run, round_number, _SEED
        ),
        measure_critic.submit(
            workspace,
            Shard(stage="evaluation: figures of the critic"),
            critic_runs,
            sizes,
            run,
            round_number,
            _SEED,
            own_runs,
        ),
    ]
    if general_runs:
        figures.append(
            measure_general.submit(
                workspace,
                Shard(stage="evaluation: figures of the general questions"),
                general_runs,
                sizes,
                run,
                round_number,
                _SEED,
            )
        )
    if learned is not None:
        figures.append(
            measure_labels.submit(
                workspace,
                Shard(stage="evaluation: figures of the labels"),
                learned.episodes,
                learned.oracle,
                learned.labels,
                sizes,
                run,
                round_number,
                _SEED,
            )
        )
    metrics = tuple(made.ref for made in account.all(figures))
    return Evaluated(metrics=metrics, made=tuple(account.made))


def _record(
    account: Account,
    workspace: Workspace,
    settings: Settings,
    label: str,
    probe: str,
    count: int,
    policy: PolicyChoice,
) -> tuple[tuple[ArtifactRef, ...], tuple[OracleRef, ...]]:
    """Let a policy play the first `count` tasks of a frozen probe set that are of the practised kinds."""
    tasks = account.one(
        freeze_probe.submit(workspace, Shard(stage=f"{label}: tasks"), probe, count, settings.tasks.kinds)
    )
    played = account.all(
        roll_out_shard.submit(workspace, shard, tasks.oracle, policy, settings.world, settings.rollout, _SEED)
        for shard in shards(label, tasks.count, settings.rollout.shard_size)
    )
    return tuple(made.ref for made in played), tuple(made.oracle for made in played)
