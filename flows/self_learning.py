"""Rounds of self-learning, each from the adapters of the one before. The flow that a schedule calls."""

from __future__ import annotations

from prefect import flow, get_run_logger, tags

from selu.config import Settings
from selu.flows.crashes import note_process
from selu.flows.learning_round import learning_round, round_tags
from selu.flows.ledger import on_chosen_runner
from selu.rounds import Round, Workspace, round_line, summary, why_stopped
from selu.tasks.progress import say

__all__ = ["self_learning"]


@flow(
    name="self-learning",
    flow_run_name="{settings.method} {settings.world.name} seed {settings.seed}, {settings.rounds} rounds",
    persist_result=False,
    on_running=[note_process],
)
def self_learning(settings: Settings) -> list[Round]:
    """Run `settings.rounds` rounds; those that are finished already are found in the store in seconds.

    Ends earlier where no new adapter was promoted for `settings.guard.stop` rounds in a row: the same models would
    go on refusing what they make of the same home.
    """
    store = Workspace.of(settings).store()
    one_round = on_chosen_runner(learning_round, settings.orchestration)
    rounds: list[Round] = []
    for number in range(1, settings.rounds + 1):
        with tags(*round_tags(settings, number)):
            rounds.append(one_round(settings, number, rounds[-1] if rounds else None))
        say(round_line(summary(store, rounds[-1])))
        stopped = why_stopped(rounds)
        if stopped is not None:
            get_run_logger().warning(stopped)
            say(stopped)
            break
    return rounds
