"""A player of one's own is known by its bytes."""

from __future__ import annotations

import sys
from pathlib import Path

from selu.config import WorldSettings
from selu.tasks.stages import world_config_of
from selu.worlds.programs import program_digest


def test_another_script_is_another_program(tmp_path: Path) -> None:
    player = tmp_path / "player.py"
    player.write_text("pass")
    command = f"{sys.executable} {player} --scenes all"
    first = program_digest(command)
    assert program_digest(command) == first
    moved = player.rename(tmp_path / "moved.py")
    assert program_digest(f"{sys.executable} {moved} --scenes all") == first, "where it lies says nothing"
    assert program_digest(f"{sys.executable} {moved} --scenes few") != first
    moved.write_text("raise SystemExit")
    assert program_digest(f"{sys.executable} {moved} --scenes all") != first


def test_unitys_settings_beside_its_launcher_count(tmp_path: Path) -> None:
    launcher = tmp_path / "thor.x86_64"
    launcher.write_bytes(b"launcher")
    launcher.chmod(0o755)
    first = program_digest(str(launcher))
    (tmp_path / "thor_Data").mkdir()
    (tmp_path / "thor_Data" / "boot.config").write_text("build-guid=1")
    assert program_digest(str(launcher)) != first


def test_a_changed_player_is_asked_again(tmp_path: Path) -> None:
    player = tmp_path / "player.py"
    player.write_text("pass")
    settings = WorldSettings(local_executable_path=f"{sys.executable} {player}")
    before = world_config_of(settings)
    moved = player.rename(tmp_path / "moved.py")
    assert world_config_of(WorldSettings(local_executable_path=f"{sys.executable} {moved}")) == before
    moved.write_text("raise SystemExit")
    assert world_config_of(WorldSettings(local_executable_path=f"{sys.executable} {moved}")) != before
    assert world_config_of(WorldSettings())["local_executable_path"] is None
