"""Recorded trajectories become labels and dataset versions, without a world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import selu.rollout
from selu.config import ModelSettings
from selu.errors import ConfigError
from selu.flows.labelling import labelling
from selu.recorded import labels_of
from selu.rounds import Workspace
from selu.tasks.datasets import read_dataset
from tests.dummy_world import small_settings

pytestmark = pytest.mark.usefixtures("dummies")


def _record(folder: Path, instruction: str, actions: list[str], opened: list[bool]) -> None:
    """An episode in the kitchen that the dummy models can read: red on the left while the fridge is open."""
    folder.mkdir(parents=True)
    (folder / "episode.json").write_text(json.dumps({"instruction": instruction, "actions": actions}))
    for index, state in enumerate(opened):
        frame = np.full((96, 96, 3), 90, dtype=np.uint8)
        frame[:, :48, 0] = 255 if state else 0
        frame[:, 48:, 1] = 0
        frame[:8, :8, 2] = len(folder.name) * 10  # no two episodes look quite alike
        Image.fromarray(frame).save(folder / f"{index}.png")


def test_a_folder_of_recordings_is_judged_relabeled_and_made_into_datasets(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_world(*_: object) -> None:
        raise AssertionError("no world is needed")

    monkeypatch.setattr(selu.rollout, "make_world", no_world)
    recordings = tmp_path / "recordings"
    _record(recordings / "done", "open the fridge", ["Open(Fridge)", "Done"], [False, True, True])
    _record(recordings / "other", "pick up the mug", ["Open(Fridge)", "Done"], [False, True, True])
    _record(recordings / "nothing", "open the fridge", ["MoveAhead"], [False, False])
    settings = small_settings(tmp_path / "data", small_model)
    made = labelling(settings, recordings)
    store = Workspace.of(settings).store()
    labels = labels_of(store, made.episodes, made.judgements, made.relabels)
    assert [(label.episode, label.verdict, label.accepted, label.relabeled_as) for label in labels] == [
        ("done", "yes", "yes", ""),
        ("nothing", "no", "yes", ""),
        ("other", "no", "yes", "open the fridge"),
    ]
    assert made.critic_dataset is not None
    assert made.actor_dataset is not None
    told = {turn[0]["content"] for turn in read_dataset(store, made.actor_dataset, "actor")["completion"]}
    assert {"Open(Fridge)", "Done"} <= told
    assert labelling(settings, recordings) == made, "found in the store"
    card = (store.path(made.actor_dataset) / "README.md").read_text()
    assert "of recorded trajectories" in card
    assert "license" not in card, "whose recordings they are is not known"
    with pytest.raises(ConfigError, match=f"is one episode's own folder; give the one that holds it: {recordings}"):
        labelling(settings, recordings / "done")


def test_where_no_actor_is_named_its_rows_are_for_one_like_the_critic(tmp_path: Path, small_model: Path) -> None:
    _record(tmp_path / "recordings" / "done", "open the fridge", ["Open(Fridge)", "Done"], [False, True, True])
    settings = small_settings(tmp_path / "data", small_model)
    critic = settings.critic.model_copy(update={"prompts": "full"})
    lengths = []
    for actor in (ModelSettings(), settings.actor):
        made = labelling(settings.model_copy(update={"actor": actor, "critic": critic}), tmp_path / "recordings")
        assert made.actor_dataset is not None
        rows = read_dataset(Workspace.of(settings).store(), made.actor_dataset, "actor")
        lengths.append(min(len(turn[0]["content"]) for turn in rows["prompt"]))
    assert lengths[0] > 3 * lengths[1], "the full prompt lists the actions"
