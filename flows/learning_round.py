"""One round of self-learning, told as a story of nine stages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from prefect import flow, tags

from selu.config import FinetuningSettings, FrameSettings, Settings
from selu.flows.evaluation import Candidates, Contestants, Learned, evaluation
from selu.flows.ledger import Account, Ledger, one_at_a_time
from selu.rounds import Round, Workspace, new_round, run_folder, run_name, save_round
from selu.seeds import derived_seed
from selu.store import ArtifactRef, OracleRef
from selu.tasks.checks import check_models
from selu.tasks.datasets import make_actor_dataset, make_critic_dataset
from selu.tasks.evaluation import LabelRun
from selu.tasks.finetuning import finetune_model
from selu.tasks.frames import extract_frames
from selu.tasks.guards import Guarded, decide_on_actor, decide_on_critic
from selu.tasks.hindsight import relabel_episodes
from selu.tasks.oracle_labels import contrast_by_truth, label_by_truth
from selu.tasks.reporting import publish_round, write_html_report
from selu.tasks.rollout import PolicyChoice, draw_tasks, roll_out_shard
from selu.tasks.self_asking import ask_about_contrasts, ask_about_episodes
from selu.tasks.stages import Made, Model, Shard, shards

__all__ = ["learning_round", "round_tags"]


def round_tags(settings: Settings, round_number: int) -> list[str]:
    """Tags of a round's runs in Prefect's UI."""
    return [
        f"method: {settings.method}",
        f"world: {settings.world.name}",
        f"seed: {settings.seed}",
        f"round: {round_number}",
    ]


@flow(
    name="learning round",
    flow_run_name="{settings.method} {settings.world.name} seed {settings.seed} round {round_number}",
    task_runner=one_at_a_time(),
    persist_result=False,
)
def learning_round(settings: Settings, round_number: int = 1, previous: Round | None = None) -> Round:
    """Collect, judge, relabel, and fine-tune both models on what came out; evaluate before and after.

    A model whose fine-tuning is switched off keeps its adapter, or has none; no dataset version is made for it. With
    ``self_asking.by=oracle`` the labels are the truth: an upper bound, and no self-learning.

    `previous` is the round before, whose adapters this one starts from. Run again, it goes on where it stopped.
    """
    with tags(*round_tags(settings, round_number)):
        return _learning_round(settings, round_number, previous)


def _start(model: Model, finetuning: FinetuningSettings) -> Model:
    """What fine-tuning starts from: the model as it is, or the one that the settings name, before any round."""
    return model if finetuning.start == "previous" else model.model_copy(update={"adapter": None})


def _learning_round(settings: Settings, round_number: int, previous: Round | None) -> Round:
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    workspace, run, ledger = Workspace.of(settings), run_name(settings), Ledger()
    episodes, shard_size = settings.tasks.episodes, settings.rollout.shard_size
    by_truth = settings.self_asking.by == "oracle"
    # Guards are for loops that cannot see the truth.
    guards = settings.guard.enabled and not by_truth
    guarded: list[Guarded] = []

    def seed(*use: str) -> int:
        return derived_seed(settings.seed, "round", round_number, *use)

    before = Contestants(
        actor=Model(settings=settings.actor, adapter=previous.actor_adapter if previous else None),
        critic=Model(settings=settings.critic, adapter=previous.critic_adapter if previous else None),
    )
    revisions = check_models(workspace, {"actor_before": before.actor, "critic_before": before.critic})

    with ledger.stage("rollout") as stage:
        tasks = stage.one(
            draw_tasks.submit(workspace, Shard(stage="tasks"), settings.tasks, settings.world, seed("tasks"))
        )
        policy = PolicyChoice(
            model=before.actor, temperature=settings.rollout.temperature, history=settings.rollout.history
        )
        played = stage.all(
            roll_out_shard.submit(
                workspace, shard, tasks.oracle, policy, settings.world, settings.rollout, seed("rollout")
            )
            for shard in shards("rollout", episodes, shard_size)
        )

    with ledger.stage("frames") as stage:
        seen = stage.all(
            extract_frames.submit(workspace, shard, recorded.ref, settings.frames)
            for shard, recorded in zip(shards("frames", episodes, shard_size), played, strict=True)
        )
    trajectories = list(zip([made.ref for made in played], [made.ref for made in seen], strict=True))

    with ledger.stage("self_asking") as stage:
        judged = stage.all(
            label_by_truth.submit(workspace, shard, *shown, recorded.oracle, settings.self_asking, settings.hindsight)
            if by_truth
            else ask_about_episodes.submit(workspace, shard, *shown, before.critic, settings.self_asking)
            for shard, shown, recorded in zip(
                shards("self-asking", episodes, shard_size), trajectories, played, strict=True
            )
        )

    with ledger.stage("hindsight") as stage:
        relabeled = (
            judged
            if by_truth
            else stage.all(
                relabel_episodes.submit(
                    workspace, shard, *shown, verdicts.ref, before.critic, settings.hindsight, settings.self_asking
                )
                for shard, shown, verdicts in zip(
                    shards("hindsight", episodes, shard_size), trajectories, judged, strict=True
                )
            )
        )
        first_judgements, first_relabels = [made.ref for made in judged], [made.ref for made in relabeled]
        # Contrasts balance what the critic learns from.
        claimed = shards("hindsight: contrasts", episodes, shard_size) if settings.critic_finetuning.enabled else []
        contrasted = stage.all(
            contrast_by_truth.submit(
                workspace,
                shard,
                *shown,
                recorded.oracle,
                verdicts.ref,
                [made.ref for made in played],
                settings.self_asking,
                seed("contrasts"),
            )
            if by_truth
            else ask_about_contrasts.submit(
                workspace,
                shard,
                *shown,
                [verdicts.ref],
                [relabels.ref],
                [made.ref for made in played],
                before.critic,
                settings.self_asking,
                seed("contrasts"),
            )
            for shard, shown, recorded, verdicts, relabels in zip(
                claimed, trajectories, played, judged, relabeled, strict=False
            )
        )
        contrasts = [made.ref for made in contrasted]

    with ledger.stage("critic_dataset") as stage:
        critic_dataset = (
            stage.one(
                make_critic_dataset.submit(
                    workspace,
                    Shard(stage="critic dataset"),
                    round_number,
                    [made.ref for made in played],
                    [made.ref for made in seen],
                    [*first_judgements, *contrasts],
                    first_relabels,
                    previous.critic_dataset if previous else None,
                    settings.dataset,
                    settings.critic.prompt_style,
                    seed("critic dataset"),
                )
            ).ref
            if settings.critic_finetuning.enabled
            else None
        )

    with ledger.stage("critic_finetuning") as stage:
        critic_adapter = (
            before.critic.adapter
            if critic_dataset is None
            else stage.one(
                finetune_model.submit(
                    workspace,
                    Shard(stage=f"critic finetuning, round {round_number}"),
                    "critic",
                    critic_dataset,
                    _start(before.critic, settings.critic_finetuning),
                    settings.critic_finetuning,
                    settings.report_to,
                    run_folder(settings),
                    seed("critic finetuning"),
                )
            ).ref
        )
    critic = Model(settings=settings.critic, adapter=critic_adapter)

    with ledger.stage("rejudging") as stage:
        rejudged = judged if by_truth else _judge_again(stage, workspace, settings, "rejudging", critic, trajectories)
        if guards and settings.critic_finetuning.enabled:
            decision = stage.one(
                decide_on_critic.submit(
                    workspace,
                    Shard(stage="rejudging: guard of the critic"),
                    [made.ref for made in played],
                    [made.ref for made in seen],
                    first_judgements,
                    [made.ref for made in rejudged],
                    before.critic,
                    critic,
                    settings.self_asking,
                    settings.guard,
                    (settings.world.height, settings.world.width),
                    settings.critic.path == "embedded" or settings.dataset.replay > 0,
                )
            )
            guarded.append(decision)
            if not decision.report.passed:
                critic = before.critic
                rejudged = _judge_again(
                    stage, workspace, settings, "rejudging: by the critic from before", critic, trajectories
                )
        rerelabeled = (
            rejudged
            if by_truth
            else stage.all(
                relabel_episodes.submit(
                    workspace,
                    shard,
                    *shown,
                    verdicts.ref,
                    critic,
                    settings.hindsight,
                    settings.self_asking,
                    agree_with_direct=critic.adapter is not None,
                )
                for shard, shown, verdicts in zip(
                    shards("rejudging: hindsight", episodes, shard_size), trajectories, rejudged, strict=True
                )
            )
        )
        rejudgements, rerelabels = [made.ref for made in rejudged], [made.ref for made in rerelabeled]
        actor_dataset = (
            stage.one(
                make_actor_dataset.submit(
                    workspace,
                    Shard(stage="rejudging: actor dataset"),
                    round_number,
                    [made.ref for made in played],
                    rejudgements,
                    rerelabels,
                    previous.actor_dataset if previous else None,
                    settings.dataset,
                    settings.rollout.history,
                    settings.actor.prompt_style,
                    settings.world.skill_set,
                    seed("actor dataset"),
                )
            ).ref
            if settings.actor_finetuning.enabled
            else None
        )

    with ledger.stage("actor_finetuning") as stage:
        actor_adapter = (
            before.actor.adapter
            if actor_dataset is None
            else stage.one(
                finetune_model.submit(
                    workspace,
                    Shard(stage=f"actor finetuning, round {round_number}"),
                    "actor",
                    actor_dataset,
                    _start(before.actor, settings.actor_finetuning),
                    settings.actor_finetuning,
                    settings.report_to,
                    run_folder(settings),
                    seed("actor finetuning"),
                )
            ).ref
        )
        actor = Model(settings=settings.actor, adapter=actor_adapter)
        if guards and settings.actor_finetuning.enabled:
            practised = [
                _practise(stage, workspace, settings, which, tasks.oracle, player, critic, seed("guard"))
                for which, player in (("old", before.actor), ("new", actor))
            ]
            decision = stage.one(
                decide_on_actor.submit(
                    workspace,
                    Shard(stage="actor finetuning: guard of the actor"),
                    (practised[0][0], practised[1][0]),
                    (practised[0][1], practised[1][1]),
                    before.actor,
                    actor,
                    settings.guard,
                    settings.world.skill_set,
                )
            )
            guarded.append(decision)
            if not decision.report.passed:
                actor = before.actor
    after = Contestants(actor=actor, critic=critic)
    refused = {item.report.who for item in guarded if not item.report.passed}
    rejected = Candidates(
        actor=Model(settings=settings.actor, adapter=actor_adapter) if "actor" in refused else None,
        critic=Model(settings=settings.critic, adapter=critic_adapter) if "critic" in refused else None,
    )

    with ledger.stage("evaluation") as stage:
        labels = (
            LabelRun(
                phase="before",
                judgements=tuple(first_judgements),
                relabels=tuple(first_relabels),
                contrasts=tuple(contrasts),
            ),
            LabelRun(phase="after", judgements=tuple(rejudgements), relabels=tuple(rerelabels)),
        )
        learned = Learned(
            episodes=tuple(made.ref for made in played), oracle=tuple(made.oracle for made in played), labels=labels
        )
        evaluated = evaluation(settings, before, after, learned, run, round_number, rejected)
        stage.made.extend(evaluated.made)

    revisions |= check_models(workspace, {"actor_after": after.actor, "critic_after": after.critic})
    finished = new_round(
        started=started,
        run=run,
        round=round_number,
        settings=settings,
        stages=tuple(ledger.stages),
        tasks=tasks.oracle,
        episodes=learned.episodes,
        oracle=learned.oracle,
        frames=tuple(made.ref for made in seen),
        judgements=tuple(first_judgements),
        relabels=tuple(first_relabels),
        contrasts=tuple(contrasts),
        rejudgements=tuple(rejudgements),
        rerelabels=tuple(rerelabels),
        critic_dataset=critic_dataset,
        actor_dataset=actor_dataset,
        critic_adapter=after.critic.adapter,
        actor_adapter=after.actor.adapter,
        critic_candidate=critic_adapter if settings.critic_finetuning.enabled else None,
        actor_candidate=actor_adapter if settings.actor_finetuning.enabled else None,
        guards=tuple(item.report for item in guarded),
        guard_artifacts=tuple(item.ref for item in guarded),
        revisions=revisions,
        metrics=evaluated.metrics,
    )
    save_round(workspace.store(), finished)
    publish_round(workspace, finished)
    write_html_report(workspace, finished)
    return finished


def _judge_again(
    stage: Account,
    workspace: Workspace,
    settings: Settings,
    label: str,
    critic: Model,
    trajectories: Sequence[tuple[ArtifactRef, ArtifactRef]],
) -> list[Made]:
    """Judge all trajectories; a critic that learned from verdicts must also say so directly."""
    return stage.all(
        ask_about_episodes.submit(
            workspace, shard, *shown, critic, settings.self_asking, agree_with_direct=critic.adapter is not None
        )
        for shard, shown in zip(
            shards(label, settings.tasks.episodes, settings.rollout.shard_size), trajectories, strict=True
        )
    )


def _practise(
    stage: Account,
    workspace: Workspace,
    settings: Settings,
    which: str,
    tasks: OracleRef,
    actor: Model,
    critic: Model,
    seed: int,
) -> tuple[list[ArtifactRef], list[ArtifactRef]]:
    """Let an actor play the guard's practice tasks greedily and a critic judge it: recordings and judgements."""
    policy = PolicyChoice(model=actor, temperature=0.0, history=settings.rollout.history)
    label = f"actor finetuning: guard, {which} actor"
    parts = shards(label, min(settings.guard.episodes, settings.tasks.episodes), settings.rollout.shard_size)
    played = stage.all(
        roll_out_shard.submit(workspace, shard, tasks, policy, settings.world, settings.rollout, seed)
        for shard in parts
    )
    seen = stage.all(
        extract_frames.submit(workspace, shard, recorded.ref, FrameSettings(select="last"))
        for shard, recorded in zip(parts, played, strict=True)
    )
    judged = stage.all(
        ask_about_episodes.submit(
            workspace,
            shard,
            recorded.ref,
            shown.ref,
            critic,
            settings.self_asking,
            agree_with_direct=critic.adapter is not None,
        )
        for shard, recorded, shown in zip(parts, played, seen, strict=True)
    )
    return [made.ref for made in played], [made.ref for made in judged]
