"""A whole small round in worlds that are not AI2-THOR."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

import selu.models
from selu.config import Settings
from selu.evaluation import MetricRow
from selu.flows.learning_round import learning_round
from selu.rounds import ROUND_STAGES, Workspace
from selu.store import read_table
from tests.dummy_world import SeeingModel, small_settings


def _probes(settings: Settings) -> set[str]:
    """Probe sets that a round's figures are about."""
    made = learning_round(settings)
    assert [stage.name for stage in made.stages] == list(ROUND_STAGES)
    store = Workspace.of(settings).store()
    return {row.probe for ref in made.metrics for row in read_table(store.path(ref) / "metrics.parquet", MetricRow)}


@pytest.fixture(autouse=True)
def _no_real_models(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = selu.models.model_revision
    monkeypatch.setattr(
        selu.models, "load_model", lambda settings, adapter=None: SeeingModel(revision(settings, adapter))
    )


@pytest.mark.skipif(find_spec("virtualhome") is None, reason="pip install --no-deps virtualhome==2.3.0")
def test_a_round_in_virtualhome(tmp_path: Path, small_model: Path) -> None:
    settings = small_settings(
        tmp_path,
        small_model,
        world={"name": "virtualhome", "skill_set": "virtualhome"},
        tasks={"episodes": 8, "kinds": ["open", "pick_up", "sit", "close", "toggle_on", "toggle_off"]},
        critic_finetuning={"enabled": False},
        actor_finetuning={"enabled": False},
    )
    assert {"A", "B"} <= _probes(settings)


def test_a_round_in_a_world_of_ones_own_has_no_probes(tmp_path: Path, small_model: Path) -> None:
    pytest.importorskip("minigrid", reason="minigrid comes with the dev extra")
    mine = tmp_path / "mine.txt"
    mine.write_text("pick up the ball\nopen the door\n")
    settings = small_settings(
        tmp_path,
        small_model,
        world={
            "name": "tests.minigrid_world:MiniGridWorld",
            "skill_set": "tests.minigrid_world:GRAMMAR",
            "width": 84,
            "height": 84,
        },
        tasks={"episodes": 8, "instructions": str(mine)},
        critic_finetuning={"enabled": False},
        actor_finetuning={"enabled": False},
    )
    assert not {"A", "B"} & _probes(settings)
