"""Fine-tuning as a stage: where its checkpoints live, and how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pytest
from prefect.client.schemas.objects import State

import selu.finetuning
from selu.config import FinetuningSettings, ModelSettings
from selu.datasets import FEATURES, DatasetCard, save_dataset_version
from selu.frames import encode_picture
from selu.rounds import Workspace
from selu.store import ArtifactRef, Store
from selu.tasks.finetuning import finetune_model
from selu.tasks.stages import Made, Model, Shard
from tests.tiny_model import make_tiny_model

SETTINGS = FinetuningSettings(rank=4, epochs=4, batch_size=2, dropout=0.1, threads=1, checkpoint_steps=3)


class Killed(BaseException):
    """As a process that ends: nobody catches it."""


def dataset_version(store: Store) -> ArtifactRef:
    def row(number: int) -> dict[str, Any]:
        picture = np.random.default_rng(number).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        return dict.fromkeys(FEATURES, "") | {
            "prompt": [{"role": "user", "content": "Is the mug open?"}],
            "completion": [{"role": "assistant", "content": "yes" if number % 2 else "no"}],
            "images": [{"bytes": encode_picture(picture), "path": None}],
            "episode_id": str(number),
            "frame_indices": [0],
        }

    rows = [row(number) for number in range(4)]
    table = datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)
    card = DatasetCard(name="selu/test", pretty_name="test", description="made up", round=1)
    with store.create("critic_dataset", "0" * 32, {"stage": "test"}) as draft:
        save_dataset_version(draft.path, {"critic": table}, card)
    return draft.ref


def fine_tune(workspace: Workspace, base: Path, settings: FinetuningSettings = SETTINGS) -> Made:
    made: Any = finetune_model.fn(
        workspace,
        Shard(stage="critic finetuning"),
        "critic",
        dataset_version(workspace.store()),
        Model(settings=ModelSettings(path=str(base), threads=1)),
        settings,
        (),
        "run",
        0,
    )
    # A stage that finds its artifact ends in a state of Prefect's.
    return cast(Made, made.data if isinstance(made, State) else made)


def test_checkpoints_lie_beside_the_store_until_the_adapter_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_tiny_model(tmp_path / "base")
    undisturbed = fine_tune(Workspace(data_dir=tmp_path / "undisturbed"), base)
    workspace, told = Workspace(data_dir=tmp_path / "data"), list[int]()

    def watched(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        told.append(state.global_step)
        if told == [1, 2, 3, 4]:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(selu.finetuning._Watch, "on_step_end", watched, raising=False)
        with pytest.raises(Killed):
            fine_tune(workspace, base)
        assert [path.name for path in workspace.checkpoints.glob("*/*/*")] == ["step-3"]
        made = fine_tune(workspace, base, SETTINGS.model_copy(update={"checkpoint_steps": 2}))
    assert told == [1, 2, 3, 4, 4, 5, 6, 7, 8]
    assert made.ref == undisturbed.ref, "the same key, whatever the steps between checkpoints, and the same bytes"
    tokens = [
        Workspace(data_dir=tmp_path / name).store().manifest(made.ref).provenance["tokens"]
        for name in ("data", "undisturbed")
    ]
    assert tokens[0] == tokens[1], "what was done before it was killed counts"
    assert not list(workspace.checkpoints.iterdir())


def test_checkpoints_of_an_adapter_that_is_in_the_store_go(tmp_path: Path) -> None:
    """As left by a process that was killed between storing it and deleting them."""
    base, workspace = make_tiny_model(tmp_path / "base"), Workspace(data_dir=tmp_path / "data")
    settings = SETTINGS.model_copy(update={"max_steps": 1})
    made = fine_tune(workspace, base, settings)
    left = workspace.checkpoints / made.ref.key / "2-rows" / "step-3"
    left.mkdir(parents=True)
    again = fine_tune(workspace, base, settings)
    assert (again.ref, again.cached) == (made.ref, True)
    assert not list(workspace.checkpoints.iterdir())


def test_settings_of_a_validation_count_only_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, workspace = make_tiny_model(tmp_path / "base"), Workspace(data_dir=tmp_path / "data")
    monkeypatch.setattr(selu.finetuning, "finetune", lambda *_, out, **__: (out / "adapter").write_text("an adapter"))

    def keys(**changes: Any) -> set[str]:
        settings = [{}, {"validate_every": 7}, {"patience": 2}]
        return {
            fine_tune(workspace, base, SETTINGS.model_copy(update={**changes, **more})).ref.key for more in settings
        }

    assert len(keys()) == 1
    assert len(keys(validation=0.5)) == 3
