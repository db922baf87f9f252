"""What operators schedule beside self-learning: evaluation of what is in use, and housekeeping."""

from __future__ import annotations

from datetime import timedelta

from prefect import flow, get_run_logger, tags
from prefect.artifacts import create_table_artifact

from selu.config import Settings
from selu.flows.crashes import longest_at_work, note_process
from selu.flows.evaluation import Contestants, Evaluated, evaluation
from selu.flows.learning_round import round_tags
from selu.flows.ledger import on_chosen_runner
from selu.housekeeping import KindOfArtifact, Pruned, prune, survey
from selu.rounds import Workspace, finished_rounds, run_name, same_training
from selu.tasks.checks import check_models
from selu.tasks.progress import say
from selu.tasks.stages import Model

__all__ = ["evaluate_latest", "housekeeping", "prune_unneeded"]


@flow(
    name="evaluation of the latest",
    flow_run_name="evaluation of {settings.method} {settings.world.name} seed {settings.seed}",
    persist_result=False,
    on_running=[note_process],
)
def evaluate_latest(settings: Settings, base_only: bool = False) -> Evaluated:
    """Evaluate the models as they are set, and beside them those of the last round that these settings trained.

    Args:
        settings: As for a round; how much is evaluated stands under `evaluation`.
        base_only: Leave the adapters of rounds out.
    """
    rounds = [] if base_only else finished_rounds(Workspace.of(settings).store())
    # The later of two that are alike: it finished last, and its adapters are the more likely to be there.
    latest = max(
        (item for item in reversed(rounds) if same_training(item.settings, settings)),
        key=lambda item: item.round,
        default=None,
    )
    if rounds and latest is None:
        say("No finished round was trained with these settings; only the models as they are set are evaluated.")
    before = Contestants(actor=Model(settings=settings.actor), critic=Model(settings=settings.critic))
    after = None
    if latest is not None:
        after = Contestants(
            actor=Model(settings=settings.actor, adapter=latest.actor_adapter),
            critic=Model(settings=settings.critic, adapter=latest.critic_adapter),
        )
    number = latest.round if latest else 0
    contestants = {"before": before, **({"after": after} if after else {})}
    models = {
        f"{who}_{phase}": getattr(pair, who) for phase, pair in contestants.items() for who in ("actor", "critic")
    }
    check_models(Workspace.of(settings), models)
    with tags(*round_tags(settings, number)):
        measure = on_chosen_runner(evaluation, settings.orchestration)
        return measure(settings, before, after, None, run_name(settings), number)


@flow(
    name="housekeeping",
    flow_run_name="housekeeping of {settings.data_dir}",
    persist_result=False,
    on_running=[note_process],
)
def housekeeping(
    settings: Settings, keep: int | None = None, hours: float = 24.0, delete: bool = False
) -> list[KindOfArtifact]:
    """Delete what no kept round needs, or only say what that would be. Returns what there is afterwards, by kind.

    Args:
        settings: Those of the runs; only `data_dir` matters.
        keep: Rounds that are kept, the newest ones with those that led to them; none named: all.
        hours: Whatever was made or used later is spared: a run that is still at work has no record yet. So is whatever
            was since the oldest run began that is at work on this machine.
        delete: Delete; otherwise only tell.
    """
    workspace = Workspace.of(settings)
    pruned = prune_unneeded(workspace, keep, hours, delete=delete)
    get_run_logger().info("%s", pruned)
    create_table_artifact(
        key="housekeeping",
        table=[{"kind": item.kind, "artifacts": item.count, "MB": round(item.bytes / 1e6, 1)} for item in pruned.kinds],
        description=str(pruned),
    )
    return survey(workspace.store())


def prune_unneeded(workspace: Workspace, keep: int | None, hours: float, *, delete: bool) -> Pruned:
    """:func:`selu.housekeeping.prune`, sparing what runs that are at work on this machine have used."""
    spared = max(timedelta(hours=hours), longest_at_work(workspace.data_dir))
    return prune(workspace.store(), keep, spared, delete=delete)
