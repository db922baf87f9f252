"""From settings to a world; a new one is a line here."""

from __future__ import annotations

from selu.config import WorldSettings
from selu.worlds.base import World


def make_world(settings: WorldSettings) -> World:
    """Start the world that the settings name. Raises WorldError if its simulator does not come up."""
    from selu.worlds.thor import ControllerSimulator, ThorWorld  # the simulator's client is slow to import

    return ThorWorld(ControllerSimulator(settings), settings)
