"""Steps 2 to 5 on trajectories from elsewhere: judged, relabeled and made into dataset versions, without any world."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from prefect import flow, tags

from selu.config import ModelSettings, Settings
from selu.flows.crashes import note_process
from selu.flows.ledger import Account, one_at_a_time
from selu.memory import Memory
from selu.recorded import list_recorded
from selu.rounds import Workspace
from selu.seeds import derived_seed
from selu.store import ArtifactRef
from selu.tasks.checks import check_models
from selu.tasks.datasets import make_actor_dataset, make_critic_dataset
from selu.tasks.frames import extract_frames
from selu.tasks.hindsight import relabel_episodes
from selu.tasks.recorded import take_recorded
from selu.tasks.self_asking import ask_about_contrasts, ask_about_episodes
from selu.tasks.stages import Model, Shard, shards

__all__ = ["Labelled", "labelling"]


class Labelled(NamedTuple):
    """What was made of recorded trajectories; lists are in the order of their shards."""

    episodes: list[ArtifactRef]
    judgements: list[ArtifactRef]
    relabels: list[ArtifactRef]
    critic_dataset: ArtifactRef | None
    """None: the critic accepted nothing that it could learn from."""
    actor_dataset: ArtifactRef | None


@flow(
    name="labelling",
    flow_run_name="label {folder}",
    task_runner=one_at_a_time(),
    persist_result=False,
    on_running=[note_process],
)
def labelling(settings: Settings, folder: Path) -> Labelled:
    """Judge and relabel the recorded episodes of a folder (:mod:`selu.recorded`) and make dataset versions of them.

    The critic is the settings' own, under `critic.adapter` if one is named; one that was fine-tuned on verdicts must say
    directly what it says when it asks itself.
    """
    workspace, account = Workspace.of(settings), Account()
    critic, agree = Model(settings=settings.critic), settings.critic.adapter is not None
    recorded = list_recorded(folder)
    with tags("recorded trajectories"):
        check_models(workspace, {"critic": critic})

        def parts(label: str) -> list[Shard]:
            return shards(label, len(recorded), settings.rollout.shard_size)

        taken = account.all(
            take_recorded.submit(workspace, part, recorded[part.start : part.stop], settings.world.skill_set)
            for part in parts("recorded episodes")
        )
        episodes = [made.ref for made in taken]
        seen = account.all(
            extract_frames.submit(workspace, part, ref, settings.frames)
            for part, ref in zip(parts("frames"), episodes, strict=True)
        )
        frames = [made.ref for made in seen]
        judged = account.all(
            ask_about_episodes.submit(workspace, part, *shown, critic, settings.self_asking, agree_with_direct=agree)
            for part, shown in zip(parts("self-asking"), zip(episodes, frames, strict=True), strict=True)
        )
        judgements = [made.ref for made in judged]
        relabeled = account.all(
            relabel_episodes.submit(
                workspace, part, *shown, critic, settings.hindsight, settings.self_asking, agree_with_direct=agree
            )
            for part, shown in zip(parts("hindsight"), zip(episodes, frames, judgements, strict=True), strict=True)
        )
        relabels = [made.ref for made in relabeled]
        contrasted = account.all(
            ask_about_contrasts.submit(
                workspace,
                part,
                *shown,
                [verdicts],
                [others],
                episodes,
                critic,
                settings.self_asking,
                derived_seed(settings.seed, "contrasts"),
                agree_with_direct=agree,
            )
            for part, shown, verdicts, others in zip(
                parts("hindsight: contrasts"), zip(episodes, frames, strict=True), judgements, relabels, strict=True
            )
        )
        critic_dataset = account.one_if_any(
            make_critic_dataset.submit(
                workspace,
                Shard(stage="critic dataset"),
                None,
                episodes,
                frames,
                [*judgements, *(made.ref for made in contrasted)],
                relabels,
                None,
                settings.dataset,
                settings.critic.prompt_style,
                derived_seed(settings.seed, "critic dataset"),
            ),
        )
        actor_dataset = account.one_if_any(
            make_actor_dataset.submit(
                workspace,
                Shard(stage="actor dataset"),
                None,
                episodes,
                judgements,
                relabels,
                None,
                settings.dataset,
                Memory.of(settings.rollout),
                _actor_to_be(settings).prompt_style,
                settings.world.skill_set,
                derived_seed(settings.seed, "actor dataset"),
            ),
        )
    return Labelled(episodes, judgements, relabels, critic_dataset, actor_dataset)


def _actor_to_be(settings: Settings) -> ModelSettings:
    """Whom the actor's rows are for. No actor plays, so that where none is named, it will be one like the critic."""
    unnamed = ModelSettings()
    shapes = ("path", "adapter", "prompts")
    named = any(getattr(settings.actor, name) != getattr(unnamed, name) for name in shapes)
    return settings.actor if named else settings.critic
