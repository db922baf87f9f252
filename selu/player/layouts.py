"""The 120 iTHOR layouts: which object stands where, and where an agent can stand."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYOUTS_FILE = Path(__file__).parent / "data" / "layouts.json.gz"
ROOM_OFFSETS = {"kitchens": 0, "living_rooms": 200, "bedrooms": 300, "bathrooms": 400}
FLAGS = (
    "pickupable", "openable", "toggleable", "breakable", "sliceable",
    "dirtyable", "canFillWithLiquid", "cookable", "receptacle", "moveable",
)  # fmt: skip
AGENT_HEIGHT = 0.9
"""Height of the agent's centre above the floor in metres, as in AI2-THOR."""


@dataclass(frozen=True)
class LayoutObject:
    """One object as the scene file has it; ``centre`` and ``size`` of its axis-aligned box in metres (x, y, z)."""

    object_id: str
    object_type: str
    centre: tuple[float, float, float]
    size: tuple[float, float, float]
    flags: frozenset[str]
    parents: tuple[str, ...]
    is_open: bool
    is_on: bool


@dataclass(frozen=True)
class Layout:
    """A scene: its objects and the reachable positions, ``(N, 2) float32`` metres (x, z) on a 0.25 m grid."""

    scene: str
    objects: tuple[LayoutObject, ...]
    reachable: NDArray[np.float32]


@cache
def _database() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(gzip.decompress(LAYOUTS_FILE.read_bytes()))
    return data


def scene_names() -> tuple[str, ...]:
    """The 120 scenes, kitchens first."""
    return tuple(f"FloorPlan{offset + i}" for offset in ROOM_OFFSETS.values() for i in range(1, 31))


def room_type(scene: str) -> str:
    """`kitchens`, `living_rooms`, `bedrooms` or `bathrooms`."""
    hundreds = int(scene.removeprefix("FloorPlan")) // 100 * 100
    return next(room for room, offset in ROOM_OFFSETS.items() if offset == hundreds)


@cache
def load_layout(scene: str) -> Layout:
    """The layout of a scene (`FloorPlan1` or `FloorPlan1_physics`). Raises KeyError for an unknown one."""
    name = scene.removesuffix("_physics")
    data = _database()[name]
    objects = tuple(
        LayoutObject(
            object_id=o["id"],
            object_type=o["type"],
            centre=tuple(o["centre"]),
            size=tuple(o["size"]),
            flags=frozenset(o["flags"]),
            parents=tuple(o.get("parents", ())),
            is_open=o.get("open", False),
            is_on=o.get("on", False),
        )
        for o in data["objects"]
    )
    return Layout(name, objects, np.array(data["reachable"], np.float32))
