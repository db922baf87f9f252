"""Rounds of self-learning, each from the adapters of the one before. The flow that a schedule calls."""

from __future__ import annotations

from prefect import flow, tags

from selu.config import Settings
from selu.flows.learning_round import learning_round, round_tags
from selu.rounds import Round

__all__ = ["self_learning"]


@flow(
    name="self-learning",
    flow_run_name="{settings.method} {settings.world.name} seed {settings.seed}, {settings.rounds} rounds",
    persist_result=False,
)
def self_learning(settings: Settings) -> list[Round]:
    """Run `settings.rounds` rounds; those that are finished already are found in the store in seconds."""
    rounds: list[Round] = []
    for number in range(1, settings.rounds + 1):
        with tags(*round_tags(settings, number)):
            rounds.append(learning_round(settings, number, rounds[-1] if rounds else None))
    return rounds
