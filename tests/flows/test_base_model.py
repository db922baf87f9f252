"""Shipping the base model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from selu.flows.base_model import _replace_folder


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
