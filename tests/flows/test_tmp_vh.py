import pytest
from pathlib import Path
from selu.flows.learning_round import learning_round
from tests.dummy_world import SeeingModel, small_settings


@pytest.mark.parametrize("which", ["minigrid", "virtualhome"])
def test_round(which, tmp_path: Path, small_model: Path, prefect_server: None, monkeypatch, caplog) -> None:
    import selu.models
    real = selu.models.model_revision
    monkeypatch.setattr(selu.models, "load_model", lambda settings, adapter=None: SeeingModel(real(settings, adapter)))
    common = {"evaluation": {"actor_episodes_a": 6, "actor_episodes_b": 6, "critic_episodes_a": 12, "critic_episodes_b": 12}}
    if which == "virtualhome":
        s = small_settings(tmp_path, small_model, world={"name": "virtualhome", "skill_set": "virtualhome"},
            tasks={"episodes": 8, "kinds": ["open", "pick_up", "sit", "close", "toggle_on", "toggle_off"]}, **common)
    else:
        mine = tmp_path / "mine.txt"; mine.write_text("pick up the ball\nopen the door\n")
        s = small_settings(tmp_path, small_model, world={"name": "tests.minigrid_world:MiniGridWorld", "skill_set": "tests.minigrid_world:GRAMMAR", "width": 84, "height": 84},
            tasks={"episodes": 8, "instructions": str(mine)}, **common)
    made = learning_round(s)
    print(made.cached, [x.name for x in made.stages])
    import duckdb
    from selu.rounds import Workspace
    from selu.store import read_table
    from selu.evaluation import MetricRow
    store = Workspace.of(s).store()
    for ref in made.metrics:
        for row in read_table(store.path(ref) / "metrics.parquet", MetricRow)[:400]:
            if row.metric in ("success_rate", "false_rate", "coverage", "accuracy", "balanced_accuracy"):
                print(row.subject if hasattr(row, "subject") else "", row)
