"""Fine-tuning as a stage: where its checkpoints live, and how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

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
    made: Made = finetune_model.fn(  # type: ignore[assignment]
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
    return made


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
