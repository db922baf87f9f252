"""Another task runner, on the real embedded world: nothing of a test reaches into other processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from selu.config import load_settings
from selu.flows.learning_round import learning_round
from selu.flows.ledger import on_chosen_runner
from selu.rounds import Workspace
from selu.store import ArtifactRef

SMALL = """
tasks.episodes=2 tasks.kinds=open rollout.shard_size=1 rollout.players=1 guard.enabled=false
critic_finetuning.enabled=false actor_finetuning.enabled=false actor.threads=1 critic.threads=1
evaluation.actor_episodes_a=1 evaluation.actor_episodes_b=0 evaluation.critic_episodes_a=2
evaluation.three_step_episodes=1
evaluation.critic_episodes_b=0 evaluation.general_questions=4 evaluation.bootstrap=100
"""


@pytest.mark.usefixtures("prefect_server")
def test_processes_of_dask_make_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("prefect_dask")
    made: dict[str, set[ArtifactRef]] = {}
    for runner in ("threads", "dask"):
        own = [f"data_dir={tmp_path / runner}", f"orchestration.task_runner={runner}"]
        settings = load_settings(None, [*own, *SMALL.split()])
        on_chosen_runner(learning_round, settings.orchestration)(settings)
        made[runner] = {ref for ref in Workspace.of(settings).store().all() if ref.kind != "round"}
    assert made["dask"] == made["threads"]
    assert {ref.kind for ref in made["dask"]} >= {"episodes", "frames", "metrics"}
