"""One round of self-learning, told as a story of nine stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from prefect import flow, tags

from selu.config import FinetuningSettings, Settings
from selu.flows.approval import approved, check_somebody_can_approve
from selu.flows.crashes import note_process
from selu.flows.evaluation import Candidates, Contestants, Evaluated, Learned, evaluation
from selu.flows.ledger import Account, Ledger, on_chosen_runner, one_at_a_time
from selu.memory import Memory
from selu.rounds import Round, Workspace, new_round, run_folder, run_name, save_round
from selu.seeds import derived_seed
from selu.store import ArtifactRef, OracleRef
from selu.tasks.checks import check_models, check_settings
from selu.tasks.corpus_pictures import ask_about_corpus_pictures, draw_corpus_pictures
from selu.tasks.datasets import corpus_of, make_actor_dataset, make_critic_dataset
from selu.tasks.evaluation import LabelRun
from selu.tasks.finetuning import finetune_model
from selu.tasks.frames import extract_frames
from selu.tasks.guards import Candidacy, Guarded, decide_on_actor, decide_on_critic
from selu.tasks.hindsight import relabel_episodes
from selu.tasks.oracle_labels import contrast_by_truth, label_by_truth
from selu.tasks.reporting import publish_round, write_html_report
from selu.tasks.rollout import PolicyChoice, draw_tasks, roll_out_shard
from selu.tasks.self_asking import ask_about_contrasts, ask_about_episodes
from selu.tasks.stages import Made, MadeWithTruth, Model, Sealed, Shard, shards

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
    on_running=[note_process],
)
def learning_round(settings: Settings, round_number: int = 1, previous: Round | None = None) -> Round:
    """Collect, judge, relabel, and fine-tune both models on what came out; evaluate before and after.

    A model whose fine-tuning is switched off, or for which no label was accepted, keeps its adapter, or has none; no dataset
    version is made for it. With ``self_asking.by=oracle`` the labels are the truth: an upper bound, and no self-learning.

    `previous` is the round before, whose models act and judge in this one. Run again, it goes on where it stopped.
    """
    check_settings(settings, ["practice", "probes"])  # models have a task of their own, which tells their revisions
    with tags(*round_tags(settings, round_number)):
        now = _RoundNow(settings, round_number, previous)
        if settings.guard.approval:
            check_somebody_can_approve()
        revisions = check_models(now.workspace, {"actor_before": now.before.actor, "critic_before": now.before.critic})

        collected = _collect(now)
        labels = _label(now, collected)
        taught_critic = _teach_critic(now, collected, labels)
        taught_critic, better, actor_dataset = _judge_again(now, collected, labels, taught_critic)
        taught_actor = _teach_actor(now, collected, actor_dataset, taught_critic.promoted)
        after = Contestants(actor=taught_actor.promoted, critic=taught_critic.promoted)
        rejected = Candidates(actor=taught_actor.rejected, critic=taught_critic.rejected)
        evaluated = _evaluate(now, collected, labels, better, after, rejected)

        revisions |= check_models(now.workspace, {"actor_after": after.actor, "critic_after": after.critic})
        finished = new_round(
            started=now.started,
            run=now.run,
            round=round_number,
            settings=settings,
            stages=tuple(now.ledger.stages),
            tasks=collected.tasks.oracle,
            episodes=tuple(collected.episodes),
            oracle=tuple(made.oracle for made in collected.played),
            frames=tuple(collected.frames),
            judgements=tuple(labels.judgements),
            relabels=tuple(labels.relabels),
            contrasts=tuple(labels.contrasts),
            corpus_pictures=labels.pictures,
            corpus_judgements=tuple(labels.on_pictures),
            rejudgements=tuple(better.judgements),
            rerelabels=tuple(better.relabels),
            critic_dataset=taught_critic.dataset,
            actor_dataset=taught_actor.dataset,
            critic_adapter=after.critic.adapter,
            actor_adapter=after.actor.adapter,
            critic_candidate=taught_critic.candidate,
            actor_candidate=taught_actor.candidate,
            guards=tuple(item.report for item in now.guarded),
            guard_artifacts=tuple(item.ref for item in now.guarded),
            revisions=revisions,
            metrics=evaluated.metrics,
        )
        save_round(now.workspace.store(), finished)
        write_html_report(now.workspace, finished)
        publish_round(now.workspace, finished)
        return finished


# What walks through a round --------------------------------------------------------------------------------------------


class _RoundNow:
    """What every stage of a round needs to know."""

    def __init__(self, settings: Settings, number: int, previous: Round | None) -> None:
        self.settings, self.number, self.previous = settings, number, previous
        self.started = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.workspace, self.run, self.ledger = Workspace.of(settings), run_name(settings), Ledger()
        self.before = Contestants(
            actor=Model(settings=settings.actor, adapter=previous.actor_adapter if previous else None),
            critic=Model(settings=settings.critic, adapter=previous.critic_adapter if previous else None),
        )
        self.by_truth = settings.self_asking.by == "oracle"
        # Guards are for loops that cannot see the truth.
        self.guards = settings.guard.enabled and not self.by_truth
        self.guarded: list[Guarded] = []

    def seed(self, *use: str) -> int:
        """The seed of one use of randomness in this round."""
        return derived_seed(self.settings.seed, "round", self.number, *use)

    def shards(self, label: str) -> list[Shard]:
        """The round's episodes in shards."""
        return shards(label, self.settings.tasks.episodes, self.settings.rollout.shard_size)


@dataclass(frozen=True)
class _Collected:
    """Trajectories, with the frames that the critic looks at; lists are in the order of their shards."""

    tasks: Sealed
    played: list[MadeWithTruth]
    seen: list[Made]

    @property
    def episodes(self) -> list[ArtifactRef]:
        return [made.ref for made in self.played]

    @property
    def frames(self) -> list[ArtifactRef]:
        return [made.ref for made in self.seen]

    @property
    def trajectories(self) -> list[tuple[ArtifactRef, ArtifactRef]]:
        return list(zip(self.episodes, self.frames, strict=True))


@dataclass(frozen=True)
class _Labels:
    """What a critic (or the truth) says of the trajectories."""

    judgements: list[ArtifactRef]
    relabels: list[ArtifactRef]
    contrasts: list[ArtifactRef] = field(default_factory=list)
    pictures: ArtifactRef | None = None
    """Of the critic's corpus."""
    on_pictures: list[ArtifactRef] = field(default_factory=list)
    """Judgements on these."""


@dataclass(frozen=True)
class _Taught:
    """A model after its fine-tuning. Without any, there is neither dataset nor candidate."""

    promoted: Model
    """What is taken into use: the candidate, or the model from before if a guard refused it."""
    dataset: ArtifactRef | None = None
    candidate: ArtifactRef | None = None
    """The adapter that fine-tuning made, whatever the guard said."""

    @property
    def rejected(self) -> Model | None:
        """The model under a candidate that was refused, None if there is none."""
        if self.candidate is None or self.promoted.adapter == self.candidate:
            return None
        return self.promoted.model_copy(update={"adapter": self.candidate})


# The stages ------------------------------------------------------------------------------------------------------------


def _collect(now: _RoundNow) -> _Collected:
    """The actor plays, and the frames that the critic will look at are picked."""
    settings = now.settings
    with now.ledger.stage("rollout") as stage:
        tasks = stage.one(
            draw_tasks.submit(
                now.workspace,
                Shard(stage="tasks"),
                settings.tasks,
                settings.world,
                settings.rollout.players,
                now.seed("tasks"),
            )
        )
        policy = PolicyChoice(
            model=now.before.actor,
            temperature=settings.rollout.temperature,
            memory=Memory.of(settings.rollout),
            by_parts=settings.rollout.by_parts,
        )
        played = stage.all(
            roll_out_shard.submit(
                now.workspace, shard, tasks.oracle, policy, settings.world, settings.rollout, now.seed("rollout")
            )
            for shard in now.shards("rollout")
        )
    with now.ledger.stage("frames") as stage:
        seen = stage.all(
            extract_frames.submit(now.workspace, shard, recorded.ref, settings.frames)
            for shard, recorded in zip(now.shards("frames"), played, strict=True)
        )
    return _Collected(tasks, played, seen)


def _label(now: _RoundNow, collected: _Collected) -> _Labels:
    """The critic as it is judges, relabels, and judges what else is worth judging."""
    if now.by_truth:
        return _label_by_truth(now, collected)
    with now.ledger.stage("self_asking") as stage:
        judged = _ask(now, stage, "self-asking", collected, now.before.critic, agree_with_direct=False)
    with now.ledger.stage("hindsight") as stage:
        relabeled = _relabel(now, stage, "hindsight", collected, judged, now.before.critic, agree_with_direct=False)
        # Contrasts balance what the critic learns from.
        claimed = now.shards("hindsight: contrasts") if now.settings.critic_finetuning.enabled else []
        contrasted = stage.all(
            ask_about_contrasts.submit(
                now.workspace,
                shard,
                *shown,
                [verdicts],
                [relabels],
                collected.episodes,
                now.before.critic,
                now.settings.self_asking,
                now.seed("contrasts"),
            )
            for shard, shown, verdicts, relabels in zip(
                claimed, collected.trajectories, judged, relabeled, strict=False
            )
        )
        pictures, on_pictures = _label_corpus(now, stage, collected) if claimed else (None, [])
    return _Labels(judged, relabeled, [made.ref for made in contrasted], pictures, on_pictures)


def _label_corpus(
    now: _RoundNow, stage: Account, collected: _Collected
) -> tuple[ArtifactRef | None, list[ArtifactRef]]:
    """The critic's judgements on pictures of its corpus.

    They are made once in a run, by the critic before its first fine-tuning, which makes it no better at questions.
    """
    settings, previous = now.settings, now.previous
    count = settings.dataset.corpus_pictures
    if not count:
        return None, []
    if previous is not None and previous.corpus_pictures is not None:
        return previous.corpus_pictures, list(previous.corpus_judgements)
    seed = derived_seed(settings.seed, "corpus pictures")
    drawn = stage.one(
        draw_corpus_pictures.submit(now.workspace, Shard(stage="corpus pictures"), settings.dataset, count, seed)
    )
    judged = stage.all(
        ask_about_corpus_pictures.submit(
            now.workspace,
            shard,
            drawn.ref,
            collected.episodes,
            Model(settings=settings.critic),
            settings.self_asking,
            seed,
        )
        for shard in shards("hindsight: corpus pictures", drawn.count, settings.rollout.shard_size)
    )
    return drawn.ref, [made.ref for made in judged]


def _label_by_truth(now: _RoundNow, collected: _Collected) -> _Labels:
    """The upper bound of a comparison: one artifact a shard stands for judgements and relabels."""
    settings = now.settings
    with now.ledger.stage("self_asking") as stage:
        judged = stage.all(
            label_by_truth.submit(
                now.workspace, shard, *shown, recorded.oracle, settings.self_asking, settings.hindsight
            )
            for shard, shown, recorded in zip(
                now.shards("self-asking"), collected.trajectories, collected.played, strict=True
            )
        )
    refs = [made.ref for made in judged]
    with now.ledger.stage("hindsight") as stage:
        claimed = now.shards("hindsight: contrasts") if settings.critic_finetuning.enabled else []
        contrasted = stage.all(
            contrast_by_truth.submit(
                now.workspace,
                shard,
                *shown,
                recorded.oracle,
                verdicts,
                collected.episodes,
                settings.self_asking,
                now.seed("contrasts"),
            )
            for shard, shown, recorded, verdicts in zip(
                claimed, collected.trajectories, collected.played, refs, strict=False
            )
        )
    return _Labels(refs, refs, [made.ref for made in contrasted])


def _teach_critic(now: _RoundNow, collected: _Collected, labels: _Labels) -> _Taught:
    """Fine-tune the critic on its own labels. Whether that is taken into use is decided when it has judged again."""
    settings = now.settings
    dataset = None
    with now.ledger.stage("critic_dataset") as stage:
        if settings.critic_finetuning.enabled:
            dataset = stage.one_if_any(
                make_critic_dataset.submit(
                    now.workspace,
                    Shard(stage="critic dataset"),
                    now.number,
                    collected.episodes,
                    collected.frames,
                    [*labels.judgements, *labels.contrasts],
                    labels.relabels,
                    now.previous.critic_dataset if now.previous else None,
                    settings.dataset,
                    settings.critic.prompt_style,
                    now.seed("critic dataset"),
                    labels.pictures,
                    labels.on_pictures,
                )
            )
    with now.ledger.stage("critic_finetuning") as stage:
        if dataset is None:
            return _Taught(now.before.critic)
        adapter = stage.one(
            finetune_model.submit(
                now.workspace,
                Shard(stage=f"critic finetuning, round {now.number}"),
                "critic",
                dataset,
                _start(now.before.critic, settings.critic_finetuning),
                settings.critic_finetuning,
                settings.report_to,
                run_folder(settings),
                now.seed("critic finetuning"),
            )
        ).ref
    return _Taught(Model(settings=settings.critic, adapter=adapter), dataset, adapter)


def _judge_again(
    now: _RoundNow, collected: _Collected, labels: _Labels, taught: _Taught
) -> tuple[_Taught, _Labels, ArtifactRef | None]:
    """The improved critic judges everything again; what it accepts becomes the actor's dataset version.

    Its guard looks on: a refused critic's labels do not count, and the one from before judges in its place.
    """
    with now.ledger.stage("rejudging") as stage:
        if now.by_truth:
            return taught, labels, _actor_dataset(now, stage, collected, labels)
        critic = taught.promoted
        judged = _ask(now, stage, "rejudging", collected, critic, agree_with_direct=critic.adapter is not None)
        if taught.candidate is not None and not (
            (not now.guards or _critic_passes(now, stage, collected, labels, judged, critic))
            and _approved(now, stage, "critic", now.before.critic, critic)
        ):
            taught = replace(taught, promoted=now.before.critic)
            critic, label = taught.promoted, "rejudging: by the critic from before"
            judged = _ask(now, stage, label, collected, critic, agree_with_direct=critic.adapter is not None)
        relabeled = _relabel(
            now, stage, "rejudging: hindsight", collected, judged, critic, agree_with_direct=critic.adapter is not None
        )
        better = _Labels(judged, relabeled)
        return taught, better, _actor_dataset(now, stage, collected, better)


def _actor_dataset(now: _RoundNow, stage: Account, collected: _Collected, labels: _Labels) -> ArtifactRef | None:
    settings = now.settings
    if not settings.actor_finetuning.enabled:
        return None
    return stage.one_if_any(
        make_actor_dataset.submit(
            now.workspace,
            Shard(stage="rejudging: actor dataset"),
            now.number,
            collected.episodes,
            labels.judgements,
            labels.relabels,
            now.previous.actor_dataset if now.previous else None,
            settings.dataset,
            Memory.of(settings.rollout),
            settings.actor.prompt_style,
            settings.world.skill_set,
            now.seed("actor dataset"),
        )
    )


def _teach_actor(now: _RoundNow, collected: _Collected, dataset: ArtifactRef | None, critic: Model) -> _Taught:
    """Fine-tune the actor on what the improved critic accepted; its guard watches it at practice."""
    settings = now.settings
    with now.ledger.stage("actor_finetuning") as stage:
        if dataset is None:
            return _Taught(now.before.actor)
        adapter = stage.one(
            finetune_model.submit(
                now.workspace,
                Shard(stage=f"actor finetuning, round {now.number}"),
                "actor",
                dataset,
                _start(now.before.actor, settings.actor_finetuning),
                settings.actor_finetuning,
                settings.report_to,
                run_folder(settings),
                now.seed("actor finetuning"),
            )
        ).ref
        taught = _Taught(Model(settings=settings.actor, adapter=adapter), dataset, adapter)
        if not (
            (not now.guards or _actor_passes(now, stage, collected, taught.promoted, critic))
            and _approved(now, stage, "actor", now.before.actor, taught.promoted)
        ):
            return replace(taught, promoted=now.before.actor)
        return taught


def _evaluate(
    now: _RoundNow,
    collected: _Collected,
    first: _Labels,
    better: _Labels,
    after: Contestants,
    rejected: Candidates,
) -> Evaluated:
    """Both models on the frozen probes, before and after, and the labels against the truth."""
    with now.ledger.stage("evaluation") as stage:
        labels = (
            LabelRun(
                phase="before",
                judgements=tuple(first.judgements),
                relabels=tuple(first.relabels),
                contrasts=tuple(first.contrasts),
            ),
            LabelRun(phase="after", judgements=tuple(better.judgements), relabels=tuple(better.relabels)),
        )
        learned = Learned(
            episodes=tuple(collected.episodes),
            oracle=tuple(made.oracle for made in collected.played),
            labels=labels,
        )
        measure = on_chosen_runner(evaluation, now.settings.orchestration)
        evaluated = measure(now.settings, now.before, after, learned, now.run, now.number, rejected)
        stage.made.extend(evaluated.made)
        return evaluated


# Parts of stages -------------------------------------------------------------------------------------------------------


def _start(model: Model, finetuning: FinetuningSettings) -> Model:
    """What fine-tuning starts from: the model as it is, or the one that the settings name, before any round."""
    return model if finetuning.start == "previous" else model.model_copy(update={"adapter": None})


def _ask(
    now: _RoundNow, stage: Account, label: str, collected: _Collected, critic: Model, *, agree_with_direct: bool
) -> list[ArtifactRef]:
    """Judge all trajectories. A critic that learned from verdicts must also say so directly."""
    judged = stage.all(
        ask_about_episodes.submit(
            now.workspace, shard, *shown, critic, now.settings.self_asking, agree_with_direct=agree_with_direct
        )
        for shard, shown in zip(now.shards(label), collected.trajectories, strict=True)
    )
    return [made.ref for made in judged]


def _relabel(
    now: _RoundNow,
    stage: Account,
    label: str,
    collected: _Collected,
    judgements: Sequence[ArtifactRef],
    critic: Model,
    *,
    agree_with_direct: bool,
) -> list[ArtifactRef]:
    """Relabel what was not judged done."""
    relabeled = stage.all(
        relabel_episodes.submit(
            now.workspace,
            shard,
            *shown,
            verdicts,
            critic,
            now.settings.hindsight,
            now.settings.self_asking,
            agree_with_direct=agree_with_direct,
        )
        for shard, shown, verdicts in zip(now.shards(label), collected.trajectories, judgements, strict=True)
    )
    return [made.ref for made in relabeled]


def _critic_passes(
    now: _RoundNow,
    stage: Account,
    collected: _Collected,
    labels: _Labels,
    judged: Sequence[ArtifactRef],
    critic: Model,
) -> bool:
    settings = now.settings
    decision = stage.one(
        decide_on_critic.submit(
            now.workspace,
            Shard(stage="rejudging: guard of the critic"),
            collected.episodes,
            collected.frames,
            labels.judgements,
            judged,
            now.before.critic,
            critic,
            settings.self_asking,
            settings.guard,
            (settings.world.height, settings.world.width),
            corpus_of(settings.dataset) if settings.corpus_is_known or settings.dataset.replay > 0 else None,
        )
    )
    now.guarded.append(decision)
    return decision.report.passed


def _actor_passes(now: _RoundNow, stage: Account, collected: _Collected, actor: Model, critic: Model) -> bool:
    old, new = (
        _practise(now, stage, which, collected.tasks.oracle, player, critic)
        for which, player in (("old", now.before.actor), ("new", actor))
    )
    decision = stage.one(
        decide_on_actor.submit(
            now.workspace,
            Shard(stage="actor finetuning: guard of the actor"),
            (old[0], new[0]),
            (old[1], new[1]),
            now.before.actor,
            actor,
            now.settings.guard,
            now.settings.world.skill_set,
        )
    )
    now.guarded.append(decision)
    return decision.report.passed


def _approved(now: _RoundNow, stage: Account, who: Literal["actor", "critic"], before: Model, candidate: Model) -> bool:
    """Whether a person approves, where one is to be asked; their word takes the place of the guard's, which passed it."""
    if not now.settings.guard.approval:
        return True
    guarded = now.guarded.pop() if now.guards else None
    candidacy = Candidacy(who=who, before=before, candidate=candidate, guarded=guarded)
    now.guarded.append(approved(stage, now.workspace, candidacy))
    return now.guarded[-1].report.passed


def _practise(
    now: _RoundNow, stage: Account, which: str, tasks: OracleRef, actor: Model, critic: Model
) -> tuple[list[ArtifactRef], list[ArtifactRef]]:
    """Let an actor play the guard's practice tasks greedily and a critic judge it: recordings and judgements."""
    settings = now.settings
    policy = PolicyChoice(model=actor, temperature=0.0, memory=Memory.of(settings.rollout))
    episodes = min(settings.guard.episodes, settings.tasks.episodes)
    parts, glances, judgings = (
        shards(f"actor finetuning: guard, {which} actor {does}", episodes, settings.rollout.shard_size)
        for does in ("plays", "is looked at", "is judged")
    )
    played = stage.all(
        roll_out_shard.submit(now.workspace, shard, tasks, policy, settings.world, settings.rollout, now.seed("guard"))
        for shard in parts
    )
    seen = stage.all(
        extract_frames.submit(now.workspace, shard, recorded.ref, settings.frames)
        for shard, recorded in zip(glances, played, strict=True)
    )
    judged = stage.all(
        ask_about_episodes.submit(
            now.workspace,
            shard,
            recorded.ref,
            shown.ref,
            critic,
            settings.self_asking,
            agree_with_direct=critic.adapter is not None,
        )
        for shard, recorded, shown in zip(judgings, played, seen, strict=True)
    )
    return [made.ref for made in played], [made.ref for made in judged]
