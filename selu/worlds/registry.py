"""From settings to a world. A new one of ours is a line here; one of a user's own is named by where it is imported from."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from selu.config import WorldSettings
from selu.errors import ConfigError
from selu.worlds.base import World


def make_world(settings: WorldSettings) -> World:
    """Start the world that the settings name.

    Raises:
        ConfigError: a world of a user's own cannot be imported, or is none.
        WorldError: its simulator does not come up.
    """
    # Simulators' clients are slow to import.
    if settings.name == "thor":
        from selu.worlds.thor import ControllerSimulator, ThorWorld

        return ThorWorld(ControllerSimulator(settings), settings)
    if settings.name == "virtualhome":
        from selu.worlds.virtualhome import start_virtualhome

        return start_virtualhome(settings)
    return _own_world(settings)


def _own_world(settings: WorldSettings) -> World:
    make = imported(settings.name, "world.name")
    if not callable(make):
        raise ConfigError(
            f"world.name={settings.name}: must be a class or function that takes WorldSettings, "
            f"got {type(make).__name__}"
        )
    world = make(settings)
    if not isinstance(world, World):
        raise ConfigError(f"world.name={settings.name}: must make a selu.worlds.World, got {type(world).__name__}")
    if world.skill_set != settings.skill_set:
        world.close()
        raise ConfigError(
            f"world.name={settings.name} knows the skill set {world.skill_set}, but world.skill_set="
            f"{settings.skill_set}: the prompts would name actions of another world; set world.skill_set="
            f"{world.skill_set}"
        )
    return world


def imported(reference: str, setting: str) -> Any:
    """What ``package.module:Name`` names; ``setting`` is where the user wrote it. Raises ConfigError."""
    module_name, _, name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"{setting}={reference}: {module_name} cannot be imported ({type(error).__name__}: {error}); install the "
            "package that holds it, or name its folder in PYTHONPATH"
        ) from error
    if name not in vars(module):
        raise ConfigError(f"{setting}={reference}: {module_name} has no {name}")
    return vars(module)[name]


def source_of(reference: str, setting: str) -> Path:
    """The file of the module that ``package.module:Name`` names. Raises ConfigError."""
    imported(reference, setting)
    return Path(str(sys.modules[reference.partition(":")[0]].__file__))
