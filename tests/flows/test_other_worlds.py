"""A whole small round in worlds that are not AI2-THOR."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

import selu.models
from selu.config import Settings, load_settings
from selu.evaluation import MetricRow
from selu.flows.learning_round import learning_round
from selu.models.base import Prompt
from selu.reporting import report_path
from selu.rounds import ROUND_STAGES, Round, Workspace
from selu.store import read_table
from tests.dummy_world import SeeingModel, small_settings

CONFIGS = Path(__file__).parents[2] / "configs"


class Closing(SeeingModel):
    """Takes the fridge that it sees shut for whatever was to be closed, so that there is something to learn."""

    def _answer(self, prompt: Prompt, seed: int | None) -> str:
        if "Which questions" in prompt.text and "close the" in prompt.text:
            return "Is the fridge closed? yes"
        return super()._answer(prompt, seed)


def _round(settings: Settings) -> tuple[Round, set[str], str]:
    """A round, the probe sets that its figures are about, and its report."""
    made = learning_round(settings)
    assert [stage.name for stage in made.stages] == list(ROUND_STAGES)
    workspace = Workspace.of(settings)
    store = workspace.store()
    rows = [row for ref in made.metrics for row in read_table(store.path(ref) / "metrics.parquet", MetricRow)]
    return made, {row.probe for row in rows}, report_path(made, workspace.reports).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _no_real_models(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = selu.models.model_revision
    monkeypatch.setattr(
        selu.models, "load_model", lambda settings, adapter=None: SeeingModel(revision(settings, adapter))
    )


@pytest.mark.skipif(find_spec("virtualhome") is None, reason="pip install --no-deps virtualhome==2.3.0")
def test_a_round_in_virtualhome_by_its_config(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = selu.models.model_revision
    monkeypatch.setattr(selu.models, "load_model", lambda settings, adapter=None: Closing(revision(settings, adapter)))
    small = f"""
        data_dir={tmp_path} report_to=[] tasks.episodes=8 rollout.shard_size=5 rollout.players=2 dataset.replay=0
        dataset.negatives_per_positive=0
        actor.path={small_model} critic.path={small_model} actor.prompts=brief critic.prompts=brief
        critic_finetuning.max_steps=1 critic_finetuning.batch_size=2 critic_finetuning.threads=1
        actor_finetuning.max_steps=1 actor_finetuning.batch_size=2 actor_finetuning.threads=1
        evaluation.actor_episodes_a=6 evaluation.actor_episodes_b=4 evaluation.critic_episodes_a=6
        evaluation.critic_episodes_b=4 evaluation.general_questions=0 evaluation.bootstrap=100
    """
    settings = load_settings(CONFIGS / "virtualhome.yaml", small.split())
    made, probes, report = _round(settings)
    assert made.critic_candidate is not None, "a step of training"
    assert {"A", "B"} <= probes
    assert "these are not VirtualHome results" in report
    assert "AI2-THOR's scenes" not in report
    assert "grab the" in report
    assert report.count("data:image/") > settings.tasks.episodes, "film strips of its episodes"


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
    _, probes, report = _round(settings)
    assert not {"A", "B"} & probes
    assert "Figures belong to the player, model and settings above" in report
    assert "AI2-THOR's scenes" not in report
