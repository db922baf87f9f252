"""One round of self-learning, told as a story of nine stages."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import flow, tags

from selu.config import Settings
from selu.flows.evaluation import Contestants, Learned, evaluation
from selu.flows.ledger import Ledger, one_at_a_time
from selu.rounds import Round, Workspace, new_round, run_folder, run_name, save_round
from selu.seeds import derived_seed
from selu.tasks.checks import check_models
from selu.tasks.datasets import make_actor_dataset, make_critic_dataset
from selu.tasks.evaluation import LabelRun
from selu.tasks.finetuning import finetune_model
from selu.tasks.frames import extract_frames
from selu.tasks.hindsight import relabel_episodes
from selu.tasks.reporting import publish_round, write_html_report
from selu.tasks.rollout import PolicyChoice, draw_tasks, roll_out_shard
from selu.tasks.self_asking import ask_about_contrasts, ask_about_episodes
from selu.tasks.stages import Model, Shard, shards

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

    `previous` is the round before, whose adapters this one starts from. Run again, it goes on where it stopped.
    """
    with tags(*round_tags(settings, round_number)):
        return _learning_round(settings, round_number, previous)


def _learning_round(settings: Settings, round_number: int, previous: Round | None) -> Round:
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    workspace, run, ledger = Workspace.of(settings), run_name(settings), Ledger()
    episodes, shard_size = settings.tasks.episodes, settings.rollout.shard_size

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
            ask_about_episodes.submit(workspace, shard, *shown, before.critic, settings.self_asking)
            for shard, shown in zip(shards("self-asking", episodes, shard_size), trajectories, strict=True)
        )

    with ledger.stage("hindsight") as stage:
        relabeled = stage.all(
            relabel_episodes.submit(
                workspace, shard, *shown, verdicts.ref, before.critic, settings.hindsight, settings.self_asking
            )
            for shard, shown, verdicts in zip(
                shards("hindsight", episodes, shard_size), trajectories, judged, strict=True
            )
        )
        first_judgements, first_relabels = [made.ref for made in judged], [made.ref for made in relabeled]
        contrasted = stage.all(
            ask_about_contrasts.submit(
                workspace,
                shard,
                *shown,
                first_judgements,
                first_relabels,
                before.critic,
                settings.self_asking,
                seed("contrasts"),
            )
            for shard, shown in zip(shards("hindsight: contrasts", episodes, shard_size), trajectories, strict=True)
        )
        contrasts = [made.ref for made in contrasted]

    with ledger.stage("critic_dataset") as stage:
        critic_dataset = stage.one(
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

    with ledger.stage("critic_finetuning") as stage:
        critic_adapter = stage.one(
            finetune_model.submit(
                workspace,
                Shard(stage=f"critic finetuning, round {round_number}"),
                "critic",
                critic_dataset,
                before.critic,
                settings.critic_finetuning,
                settings.report_to,
                run_folder(settings),
                seed("critic finetuning"),
            )
        ).ref
    critic = Model(settings=settings.critic, adapter=critic_adapter)

    with ledger.stage("rejudging") as stage:
        rejudged = stage.all(
            ask_about_episodes.submit(workspace, shard, *shown, critic, settings.self_asking, agree_with_direct=True)
            for shard, shown in zip(shards("rejudging", episodes, shard_size), trajectories, strict=True)
        )
        rerelabeled = stage.all(
            relabel_episodes.submit(
                workspace,
                shard,
                *shown,
                verdicts.ref,
                critic,
                settings.hindsight,
                settings.self_asking,
                agree_with_direct=True,
            )
            for shard, shown, verdicts in zip(
                shards("rejudging: hindsight", episodes, shard_size), trajectories, rejudged, strict=True
            )
        )
        rejudgements, rerelabels = [made.ref for made in rejudged], [made.ref for made in rerelabeled]
        actor_dataset = stage.one(
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

    with ledger.stage("actor_finetuning") as stage:
        actor_adapter = stage.one(
            finetune_model.submit(
                workspace,
                Shard(stage=f"actor finetuning, round {round_number}"),
                "actor",
                actor_dataset,
                before.actor,
                settings.actor_finetuning,
                settings.report_to,
                run_folder(settings),
                seed("actor finetuning"),
            )
        ).ref
    after = Contestants(actor=Model(settings=settings.actor, adapter=actor_adapter), critic=critic)

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
        evaluated = evaluation(settings, before, after, learned, run, round_number)
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
        critic_adapter=critic_adapter,
        actor_adapter=actor_adapter,
        revisions=revisions,
        metrics=evaluated.metrics,
    )
    save_round(workspace.store(), finished)
    publish_round(workspace, finished)
    write_html_report(workspace, finished)
    return finished
