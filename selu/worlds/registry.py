"""From settings to a world. A new one of ours is a line here; one of a user's own is named by where it is imported from."""

from __future__ import annotations

import socket

from selu.config import WorldSettings
from selu.errors import ConfigError
from selu.worlds.base import World
from selu.worlds.own import imported


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


def check_server(settings: WorldSettings) -> None:
    """Refuse a simulator's address at which for certain nobody listens, in place of waiting for one.

    Raises:
        ConfigError: a connection is refused there.
    """
    if settings.server is None:
        return
    host, _, port = settings.server.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=settings.start_timeout).close()
    except ConnectionRefusedError:
        raise ConfigError(
            f"world.server={settings.server}: nothing listens there. Start VirtualHome, or leave world.server unset for the "
            "embedded player."
        ) from None
    except (OSError, ValueError, OverflowError):
        pass  # not for certain in vain: the world tries for as long as the settings say


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
