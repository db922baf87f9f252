"""Homes for the embedded VirtualHome player: scene graphs in VirtualHome's own form, drawn by a seed.

The wheel has no scenes. A home has four rooms without doors, furniture along their walls, things on it and in it.
A number stands for a home: equal numbers, equal graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from selu.player.shapes import Vector

Graph = dict[str, Any]
ROOM_PITCH = 12.0
"""Metres from room to room; walls are closed, so what lies between is never seen."""
_CORNER = 0.9
"""Metres that furniture keeps from a corner: as deep as most of it is."""
_PASSAGE = 0.2
_SOMETIMES = 0.85
"""Share of the homes that have a given piece of furniture."""
_INSIDE = 0.25
"""Share of the small things that lie in something that opens."""
_SMALL_THINGS = 11


@dataclass(frozen=True)
class Kind:
    """A kind of object: its class in VirtualHome, its size in metres (along the wall, up, away from it), properties."""

    class_name: str
    size: Vector
    properties: tuple[str, ...] = ()


_OPENS = ("CAN_OPEN", "CONTAINERS")
_SMALL = ("GRABBABLE", "MOVABLE")
KINDS: dict[str, Kind] = {
    "Fridge": Kind("fridge", (0.9, 1.8, 0.75), _OPENS),
    "Stove": Kind("stove", (0.8, 0.95, 0.7), _OPENS),
    "Dishwasher": Kind("dishwasher", (0.7, 0.9, 0.65), _OPENS),
    "CounterTop": Kind("kitchencounter", (1.7, 0.9, 0.65), ("SURFACES",)),
    "DiningTable": Kind("kitchentable", (1.5, 0.75, 0.85), ("SURFACES",)),
    "Cabinet": Kind("cabinet", (0.9, 1.3, 0.5), _OPENS),
    "Drawer": Kind("nightstand", (0.6, 0.6, 0.5), _OPENS),
    "GarbageCan": Kind("garbagecan", (0.4, 0.6, 0.4)),
    "Sink": Kind("sink", (0.7, 0.9, 0.6)),
    "Chair": Kind("chair", (0.5, 0.95, 0.5), ("SITTABLE",)),
    "Sofa": Kind("sofa", (1.9, 0.85, 0.9), ("SITTABLE", "LIEABLE", "SURFACES")),
    "ArmChair": Kind("armchair", (0.9, 0.85, 0.85), ("SITTABLE",)),
    "Bench": Kind("bench", (1.2, 0.5, 0.45), ("SITTABLE",)),
    "CoffeeTable": Kind("coffeetable", (1.2, 0.5, 0.7), ("SURFACES",)),
    "SideTable": Kind("tvstand", (1.4, 0.6, 0.5), ("SURFACES",)),
    "FloorLamp": Kind("floorlamp", (0.45, 1.7, 0.45), ("HAS_SWITCH",)),
    "Bed": Kind("bed", (1.5, 0.65, 2.0), ("SITTABLE", "LIEABLE", "SURFACES")),
    "Desk": Kind("desk", (1.5, 0.78, 0.7), ("SURFACES",)),
    "Dresser": Kind("dresser", (1.1, 0.9, 0.5), ("SURFACES",)),
    "Toilet": Kind("toilet", (0.5, 0.8, 0.75), ("CAN_OPEN", "SITTABLE")),
    "WashingMachine": Kind("washingmachine", (0.7, 0.95, 0.65), _OPENS),
    # upon furniture
    "Microwave": Kind("microwave", (0.55, 0.35, 0.4), (*_OPENS, "HAS_SWITCH")),
    "CoffeeMachine": Kind("coffeemaker", (0.35, 0.45, 0.35), ("HAS_SWITCH",)),
    "Television": Kind("tv", (1.1, 0.7, 0.25), ("HAS_SWITCH",)),
    "Radio": Kind("radio", (0.4, 0.28, 0.22), ("HAS_SWITCH",)),
    "Computer": Kind("computer", (0.7, 0.5, 0.25), ("HAS_SWITCH",)),
    "DeskLamp": Kind("tablelamp", (0.3, 0.5, 0.3), ("HAS_SWITCH",)),
    # small things, as large as the household player draws them
    "Mug": Kind("mug", (0.34, 0.3, 0.26), (*_SMALL, "RECIPIENT")),
    "Bowl": Kind("bowl", (0.34, 0.17, 0.34), (*_SMALL, "RECIPIENT")),
    "Plate": Kind("plate", (0.36, 0.06, 0.36), _SMALL),
    "Apple": Kind("apple", (0.28, 0.28, 0.28), (*_SMALL, "EATABLE")),
    "Bread": Kind("breadslice", (0.34, 0.2, 0.22), (*_SMALL, "EATABLE")),
    "Book": Kind("book", (0.34, 0.08, 0.26), (*_SMALL, "READABLE")),
    "Pillow": Kind("pillow", (0.42, 0.18, 0.34), _SMALL),
    "AlarmClock": Kind("clock", (0.28, 0.26, 0.16), _SMALL),
    "Vase": Kind("vase", (0.24, 0.36, 0.24), _SMALL),
    "ToiletPaper": Kind("toiletpaper", (0.26, 0.28, 0.26), _SMALL),
    "SprayBottle": Kind("spraybottle", (0.16, 0.36, 0.16), _SMALL),
}
"""Type, as instructions and actions name it -> kind. Types that the household has too are called as there."""

TYPES = {kind.class_name: name for name, kind in KINDS.items()} | {
    # classes of the simulator's own homes
    "kitchencabinet": "Cabinet",
    "bathroomcabinet": "Cabinet",
    "kitchencounterdrawer": "Drawer",
    "wallphone": "Phone",
    "toaster": "Toaster",
}
"""Class in VirtualHome -> type."""

ROOMS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "kitchen": (
        ("Fridge", "CounterTop", "Stove", "DiningTable", "Dishwasher", "Sink", "Chair", "Cabinet", "GarbageCan"),
        {"Microwave": "CounterTop", "CoffeeMachine": "CounterTop"},
    ),
    "livingroom": (
        ("Sofa", "SideTable", "CoffeeTable", "ArmChair", "FloorLamp", "Bench", "Cabinet"),
        {"Television": "SideTable", "Radio": "CoffeeTable"},
    ),
    "bedroom": (
        ("Bed", "Desk", "Dresser", "Drawer", "Chair", "FloorLamp"),
        {"Computer": "Desk", "DeskLamp": "Dresser"},
    ),
    "bathroom": (("Toilet", "Sink", "WashingMachine", "Cabinet", "SideTable"), {}),
}
"""Room -> furniture along its walls, and what stands upon which piece of it."""


def type_of_class(class_name: str) -> str:
    """The type of a class: ``tv`` -> ``Television``; of one outside the table ``toothbrush`` -> ``Toothbrush``."""
    return TYPES.get(class_name) or class_name.title().replace("_", "")


def home_graph(number: int) -> Graph:
    """The scene graph of a home: ``{nodes, edges}``, boxes in metres (x right, y up, z forward), small things placed."""
    rng = np.random.default_rng(np.random.SeedSequence([number]))
    nodes: list[dict[str, Any]] = []
    edges: list[dict[str, Any]] = []

    def add(class_name: str, category: str, properties: tuple[str, ...], centre: Vector, size: Vector) -> int:
        states = [state for able, state in (("CAN_OPEN", "CLOSED"), ("HAS_SWITCH", "OFF")) if able in properties]
        nodes.append(
            {
                "id": len(nodes) + 1,
                "class_name": class_name,
                "category": category,
                "properties": list(properties),
                "states": states,
                "prefab_name": class_name,
                "bounding_box": {"center": list(centre), "size": list(size)},
            }
        )
        return len(nodes)

    for index, (room, (furniture, upon)) in enumerate(ROOMS.items()):
        width, depth = (float(round(rng.uniform(4.6, 5.6), 2)) for _ in range(2))
        x0, z0 = index % 2 * ROOM_PITCH, index // 2 * ROOM_PITCH
        room_id = add(room, "Rooms", (), (x0 + width / 2, 1.3, z0 + depth / 2), (width, 2.6, depth))
        supports: dict[str, int] = {}
        # The first three of each room are always there, and first to find a place.
        wanted = [*furniture[:3], *(name for name in furniture[3:] if rng.random() < _SOMETIMES)]
        free = dict.fromkeys(range(4), _CORNER)
        for name in wanted:
            spot = _spot_along_a_wall(KINDS[name].size, (width, depth), free, rng)
            if spot is None:
                continue
            (x, z), size = spot
            made = add(
                KINDS[name].class_name,
                "Furniture",
                KINDS[name].properties,
                (round(x0 + x, 3), size[1] / 2, round(z0 + z, 3)),
                size,
            )
            edges.append({"from_id": made, "relation_type": "INSIDE", "to_id": room_id})
            supports[name] = made
        for name, below in upon.items():
            if below in supports and rng.random() < _SOMETIMES:
                w, h, d = KINDS[name].size
                made = add(KINDS[name].class_name, "Appliances", KINDS[name].properties, (0.0, 0.0, 0.0), (w, h, d))
                edges.append({"from_id": made, "relation_type": "ON", "to_id": supports[below]})
                edges.append({"from_id": made, "relation_type": "INSIDE", "to_id": room_id})
    small = [name for name, kind in KINDS.items() if "GRABBABLE" in kind.properties]
    for k in sorted(rng.permutation(len(small))[:_SMALL_THINGS].tolist()):
        kind = KINDS[small[k]]
        add(kind.class_name, "Props", kind.properties, (0.0, 0.0, 0.0), kind.size)
    return place_small_things({"nodes": nodes, "edges": edges}, number)


def _spot_along_a_wall(
    size: Vector, room: tuple[float, float], free: dict[int, float], rng: np.random.Generator
) -> tuple[tuple[float, float], Vector] | None:
    """Centre (x, z) in the room and size (x, y, z) of a piece with its back to a wall; None where there is no room left.

    ``free`` is how far each wall (south, north, west, east) is taken, in metres.
    """
    along, up, away = size
    for wall in rng.permutation(4).tolist():
        length = room[0] if wall < 2 else room[1]
        if free[wall] + along > length - _CORNER + 1e-9:
            continue
        middle = free[wall] + along / 2
        free[wall] += along + _PASSAGE + float(rng.uniform(0, 0.2))
        across = away / 2 if wall in (0, 2) else room[wall < 2] - away / 2
        return ((middle, across), (along, up, away)) if wall < 2 else ((across, middle), (away, up, along))
    return None


def place_small_things(graph: Graph, seed: int) -> Graph:
    """The graph with every small thing on a surface or in something that opens, drawn by the seed."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    small = [node["id"] for node in graph["nodes"] if "GRABBABLE" in node["properties"]]
    edges = [edge for edge in graph["edges"] if edge["from_id"] not in small and edge["to_id"] not in small]
    room_of = {edge["from_id"]: edge["to_id"] for edge in edges if edge["relation_type"] == "INSIDE"}
    rooms = {node["id"] for node in graph["nodes"] if node["category"] == "Rooms"}

    def having(wanted: str) -> list[int]:
        return [n["id"] for n in graph["nodes"] if wanted in n["properties"] and room_of.get(n["id"]) in rooms]

    surfaces, containers = having("SURFACES"), having("CONTAINERS")
    for thing in small:
        inside = rng.random() < _INSIDE
        places = containers if inside else surfaces
        place = places[int(rng.integers(len(places)))]
        edges.append({"from_id": thing, "relation_type": "INSIDE" if inside else "ON", "to_id": place})
        if not inside:
            edges.append({"from_id": thing, "relation_type": "INSIDE", "to_id": room_of[place]})
    return {"nodes": graph["nodes"], "edges": edges}
