"""Shipping the base model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from selu.flows.base_model import _replace_folder, main
from selu.tasks.base_model import BaseModelRecipe


def _folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text(path.name)
    return path


def test_a_model_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    new, out = _folder(tmp_path / "new", "config.json", "manifest.json"), _folder(tmp_path / "out", "old.json")
    _replace_folder(new, out)
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"new", "out"}


def test_a_copy_that_fails_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, out = _folder(tmp_path / "new", "config.json"), _folder(tmp_path / "out", "old.json")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(shutil, "copytree", fail)
    with pytest.raises(OSError, match="full"):
        _replace_folder(new, out)
    assert [path.name for path in out.iterdir()] == ["old.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"new", "out"}


def test_a_recipe_of_ones_own_is_checked_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[BaseModelRecipe] = []
    monkeypatch.setattr("selu.flows.base_model.base_model", lambda settings, recipe, out: made.append(recipe))
    monkeypatch.setattr("sys.argv", ["base_model", "--out", str(tmp_path), "seed=1", "speaking_steps=1600"])
    main()
    assert made == [BaseModelRecipe(seed=1, speaking_steps=1600)]
    for wrong, says in (
        ("speeking_steps=3", "speeking_steps: Extra inputs"),
        ("frames=0", "frames: Input should be greater"),
    ):
        monkeypatch.setattr("sys.argv", ["base_model", "--out", str(tmp_path), wrong])
        with pytest.raises(SystemExit):
            main()
        assert says in capsys.readouterr().err
    assert len(made) == 1
