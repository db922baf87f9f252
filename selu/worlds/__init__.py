"""Worlds behind one Gymnasium contract, their tasks, and the scripted planner."""

from selu.worlds.base import OracleState, World
from selu.worlds.registry import make_world

__all__ = ["OracleState", "World", "make_world"]
