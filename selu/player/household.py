"""The household's state and its actions, with AI2-THOR's names, refusals and metadata.

Simplifications: small objects that have a name are drawn at least :data:`SMALLEST` metres across, so that they can be
told apart at 96 pixels; slicing marks an object instead of spawning slices; there is no physics: a dropped or thrown
thing lands on the floor ahead of the agent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selu.player import VISIBLE_SHARE
from selu.player.layouts import AGENT_HEIGHT, Layout, LayoutObject, load_layout, scene_names
from selu.player.renderer import CAMERA_ABOVE_AGENT, Mesh, Pose, Renderer, View, build_mesh, room_mesh
from selu.player.shapes import COLOURS, TALL, Appearance, Vector, shape_of

SMALLEST = 0.34
REACH_OF_GRID = 0.18
"""An agent may stand within this distance (metres) of a reachable grid position."""
SURFACES = {
    "CounterTop", "DiningTable", "Desk", "SideTable", "CoffeeTable", "Bed", "Sofa", "Dresser", "TVStand", "Shelf",
    "ArmChair", "ShelvingUnit", "Ottoman", "Chair", "Stool",
}  # fmt: skip
HOLLOW = {"Sink", "SinkBasin", "GarbageCan", "Bowl", "Pot", "Pan", "Box", "Bathtub", "BathtubBasin", "LaundryHamper"}
UNDRAWN = {"ShowerGlass", "Bathtub"}
"""Types whose boxes would hide what is inside them."""
EYE_HEIGHT = AGENT_HEIGHT + CAMERA_ABOVE_AGENT


@dataclass
class Thing:
    """One object and its state; ``centre`` and ``size`` (x, y, z) in metres as drawn."""

    layout: LayoutObject
    centre: Vector
    size: Vector
    is_open: bool
    is_on: bool
    parent: str | None
    is_broken: bool = False
    is_sliced: bool = False
    is_dirty: bool = False
    is_filled: bool = False
    is_cooked: bool = False
    front: tuple[int, int] = (0, 1)
    contents: list[str] = field(default_factory=list)

    @property
    def object_id(self) -> str:
        return self.layout.object_id

    @property
    def object_type(self) -> str:
        return self.layout.object_type

    @property
    def look(self) -> Appearance:
        """What can be seen of the state."""
        return Appearance(self.is_open, self.is_on, self.is_broken, self.is_sliced, self.is_dirty, self.is_filled)

    def can(self, flag: str) -> bool:
        """Whether the object has one of the flags of :data:`selu.player.layouts.FLAGS`."""
        return flag in self.layout.flags


@dataclass(frozen=True)
class Outcome:
    """What an action came to."""

    success: bool = True
    message: str = ""
    code: str = ""
    value: Any = None


class Refused(Exception):
    """The action cannot be done; nothing has changed."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Household:
    """One scene with one agent. :meth:`act` takes an AI2-THOR action dict; :meth:`view` draws what the agent sees."""

    def __init__(self, width: int = 300, height: int = 300) -> None:
        self.renderer = Renderer(width, height, 90.0)
        self.visibility_distance = 1.5
        self.grid_size = 0.25
        self.reset("FloorPlan1")

    # --- scene ---------------------------------------------------------------------------------------------------

    def reset(self, scene: str) -> None:
        """Load a scene in its default state."""
        try:
            self.layout: Layout = load_layout(scene)
        except KeyError:
            raise Refused(f"Scene {scene} is not in the build.", "InvalidArgument") from None
        self.things = {o.object_id: self._thing(o) for o in self.layout.objects}
        solid = [t for t in self.things.values() if t.object_type != "Floor"]
        low = np.min([np.array(t.centre) - np.array(t.size) / 2 for t in solid], 0)
        high = np.max([np.array(t.centre) + np.array(t.size) / 2 for t in solid], 0)
        self.low, self.high = tuple(map(float, low)), tuple(map(float, high))
        self._room = room_mesh((self.low[0], self.low[1], self.low[2]), (self.high[0], self.high[1], self.high[2]))
        self._names = list(self.things)
        self._index = {name: i for i, name in enumerate(self._names)}
        self._floor = next((i for i, n in enumerate(self._names) if self.things[n].object_type == "Floor"), -1)
        self._undrawn = {n for n, t in self.things.items() if t.object_type in UNDRAWN or self._encloses_agent(t)}
        self._meshes: dict[tuple[Any, ...], Mesh] = {}
        for thing in self.things.values():
            if self._in_a_circle(thing):  # two cabinets of FloorPlan5 name each other as parents, and five more pairs
                thing.parent = None
            if thing.parent in self.things:
                self.things[thing.parent].contents.append(thing.object_id)
        self.held: str | None = None
        x, z = self.layout.reachable[len(self.layout.reachable) // 2]
        self.x, self.z, self.yaw, self.pitch = float(x), float(z), 0.0, 0.0
        self.changed()

    def _thing(self, o: LayoutObject) -> Thing:
        size = tuple(max(s, 0.008) for s in o.size)
        centre = o.centre
        if "pickupable" in o.flags and o.object_type in COLOURS and max(size) < SMALLEST:
            if o.object_type in TALL:
                grown = (SMALLEST * TALL[o.object_type], SMALLEST, SMALLEST * TALL[o.object_type])
            else:
                factor = SMALLEST / max(size)
                grown = (size[0] * factor, size[1] * factor, size[2] * factor)
            centre = (centre[0], centre[1] + (grown[1] - size[1]) / 2, centre[2])
            size = grown
        parent = next((p for p in o.parents if not p.startswith("Floor")), o.parents[0] if o.parents else None)
        thing = Thing(o, centre, (size[0], size[1], size[2]), o.is_open, o.is_on, parent)
        thing.front = self._front(thing)
        return thing

    def _in_a_circle(self, thing: Thing) -> bool:
        seen = {thing.object_id}
        parent = thing.parent
        while parent in self.things and parent not in seen:
            seen.add(parent)
            parent = self.things[parent].parent
        return parent in seen

    def _encloses_agent(self, thing: Thing) -> bool:
        """A box (a curtain's, say) that an agent's eye can be inside of would black out the picture."""
        reachable = self.layout.reachable
        c, s = thing.centre, thing.size
        inside = (np.abs(reachable - np.array([c[0], c[2]])) < np.array([s[0], s[2]]) / 2 + 0.05).all(1)
        return bool(inside.any() and abs(EYE_HEIGHT - c[1]) < s[1] / 2 + 0.05)

    def _front(self, thing: Thing) -> tuple[int, int]:
        """The side (axis, sign) before which an agent can best stand."""
        reachable = self.layout.reachable
        best, best_score = (0, 1), math.inf
        for axis in (0, 2):
            for sign in (1, -1):
                spot = np.array(thing.centre)
                spot[axis] += sign * (thing.size[axis] / 2 + 0.6)
                distance = np.linalg.norm(reachable - spot[[0, 2]].astype(np.float32), axis=1)
                # Wide sides are fronts rather than narrow ones: doors and drawers face along the thin axis.
                score = float(np.sort(distance)[:6].mean()) + 0.25 * (thing.size[axis] > thing.size[2 - axis] * 1.05)
                if score < best_score:
                    best, best_score = (axis, sign), score
        return best

    def hidden(self, thing: Thing) -> bool:
        """Inside something closed."""
        parent = self.things.get(thing.parent or "")
        while parent is not None:
            if parent.can("openable") and parent.can("receptacle") and not parent.is_open:
                return True
            parent = self.things.get(parent.parent or "")
        return False

    def changed(self) -> None:
        """Note that geometry has to be gathered again before the next picture."""
        self._stale = True
        self._view: View | None = None
        self._pixels: tuple[View, np.ndarray[Any, np.dtype[np.int64]]] | None = None

    def view(self) -> View:
        """What the agent sees now; cached until something changes."""
        if self._stale:
            meshes = [(-1, self._room)]
            for name, thing in self.things.items():
                if name == self.held or name in self._undrawn or self.hidden(thing):
                    continue
                meshes.append((self._index[name], self._mesh(thing)))
            self.renderer.load(meshes, self._floor)
            self._stale = False
        if self._view is None:
            held = None
            if self.held is not None:
                thing = self.things[self.held]
                held = (self._index[self.held], thing.object_type, thing.look)
            self._view = self.renderer.render(Pose(self.x, AGENT_HEIGHT, self.z, self.yaw, self.pitch), held)
        return self._view

    def _mesh(self, thing: Thing) -> Mesh:
        key = (thing.object_id, thing.centre, thing.look)
        if key not in self._meshes:
            axis, sign = thing.front
            size = (thing.size[axis], thing.size[1], thing.size[2 - axis])
            self._meshes[key] = build_mesh(shape_of(thing.object_type, size, thing.look), thing.centre, axis, sign)
        return self._meshes[key]

    def instance_ids(self) -> list[str]:
        """Object ids in the order of the segmentation's indices."""
        return self._names

    def distance(self, thing: Thing) -> float:
        """Horizontal metres from the agent to the nearest point of the object's box."""
        dx = max(abs(self.x - thing.centre[0]) - thing.size[0] / 2, 0.0)
        dz = max(abs(self.z - thing.centre[2]) - thing.size[2] / 2, 0.0)
        return math.hypot(dx, dz)

    def pixels(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Pixels of each object in the current view, in the order of :meth:`instance_ids`."""
        view = self.view()
        if self._pixels is None or self._pixels[0] is not view:
            segmentation = view.segmentation
            self._pixels = view, np.bincount(segmentation[segmentation >= 0], minlength=len(self._names))
        return self._pixels[1]

    def is_visible(self, thing: Thing) -> bool:
        """In the picture and within the visibility distance, as AI2-THOR means it."""
        if thing.object_id == self.held:
            return True
        enough = VISIBLE_SHARE * self.renderer.width * self.renderer.height
        return bool(
            self.pixels()[self._index[thing.object_id]] >= enough and self.distance(thing) <= self.visibility_distance
        )

    def can_stand(self, x: float, z: float) -> bool:
        """Whether the agent fits at (x, z) metres."""
        return bool(np.linalg.norm(self.layout.reachable - np.array([x, z]), axis=1).min() <= REACH_OF_GRID)

    # --- actions -------------------------------------------------------------------------------------------------

    def act(self, action: dict[str, Any]) -> Outcome:
        """Do an AI2-THOR action; a refusal leaves everything as it was."""
        name = str(action.get("action"))
        handler = _ACTIONS.get(name)
        try:
            if handler is None:
                raise Refused(f"Invalid action: {name}. It is not known to this player.", "InvalidAction")
            return Outcome(value=handler(self, action))
        except Refused as refusal:
            return Outcome(False, str(refusal), refusal.code)
        except (KeyError, TypeError) as error:
            return Outcome(False, f"{name} is missing or has a wrong argument: {error}", "MissingArguments")

    def _target(self, action: dict[str, Any], flag: str, verb: str) -> Thing:
        object_id = action.get("objectId")
        if object_id is None:
            raise Refused(f"{action['action']} needs an objectId", "MissingArguments")
        thing = self.things.get(str(object_id))
        if thing is None:
            raise Refused(f"Object ID {object_id} appears to be invalid.")
        if not action.get("forceAction") and not self.is_visible(thing):
            raise Refused(f"{object_id} is not visible.")
        if not thing.can(flag):
            raise Refused(f"{object_id} is not {verb}")
        return thing

    def _set(self, thing: Thing, attribute: str, value: bool, message: str) -> None:
        if getattr(thing, attribute) == value:
            raise Refused(f"{thing.object_id} {message}")
        setattr(thing, attribute, value)
        self.changed()

    def move(self, a: dict[str, Any], turn: float) -> None:
        direction = math.radians(self.yaw + turn)
        step = float(a.get("moveMagnitude") or self.grid_size)
        # Checked along the way, so that nobody walks through a table.
        for k in range(1, max(1, round(step / 0.25)) + 1):
            part = min(step, 0.25 * k)
            if not self.can_stand(self.x + part * math.sin(direction), self.z + part * math.cos(direction)):
                raise Refused("Collided with an obstacle while moving.")
        self.x += step * math.sin(direction)
        self.z += step * math.cos(direction)
        self._view = None

    def rotate(self, a: dict[str, Any], sign: int) -> None:
        self.yaw = (self.yaw + sign * float(a.get("degrees") or 90.0)) % 360
        self._view = None

    def look(self, a: dict[str, Any], sign: int) -> None:
        pitch = self.pitch + sign * float(a.get("degrees") or 30.0)
        if not -30.0 <= pitch <= 60.0:
            raise Refused("Cannot look further " + ("down." if sign > 0 else "up."))
        self.pitch = pitch
        self._view = None

    def teleport(self, a: dict[str, Any]) -> None:
        position, rotation = a.get("position"), a.get("rotation")
        if position is None and a.get("x") is not None:
            position = {"x": a["x"], "z": a["z"]}
        if position is not None:
            x, z = float(position["x"]), float(position["z"])
            if not a.get("forceAction") and not self.can_stand(x, z):
                raise Refused(f"Target position ({x:.2f}, {z:.2f}) is not reachable.")
            self.x, self.z = x, z
        if rotation is not None:
            self.yaw = float(rotation["y"] if isinstance(rotation, dict) else rotation) % 360
        if a.get("horizon") is not None:
            self.pitch = float(a["horizon"])
        self._view = None

    def pick_up(self, a: dict[str, Any]) -> None:
        thing = self._target(a, "pickupable", "pickupable")
        if self.held is not None:
            raise Refused("Agent hand has something in it already. Can't pick up anything else.")
        if self.hidden(thing) and not a.get("forceAction"):
            raise Refused(f"{thing.object_id} is inside something closed.")
        if thing.contents:
            raise Refused(f"{thing.object_id} holds other objects; take them out first.")
        self._detach(thing)
        self.held = thing.object_id
        self.changed()

    def _detach(self, thing: Thing) -> None:
        if thing.parent in self.things:
            self.things[thing.parent].contents.remove(thing.object_id)
        thing.parent = None

    def put(self, a: dict[str, Any]) -> None:
        if self.held is None:
            raise Refused("No object in hand to put.")
        receptacle = self._target(a, "receptacle", "a receptacle")
        if receptacle.object_id == self.held:
            raise Refused("An object can't be put into itself.")
        if receptacle.can("openable") and not receptacle.is_open and not a.get("forceAction"):
            raise Refused("Target openable receptacle is CLOSED, can't place in it.")
        thing, self.held = self.things[self.held], None
        self.place(thing, receptacle, np.array([self.x, self.z]))
        self.changed()

    def place(self, thing: Thing, receptacle: Thing, toward: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Lay a thing on (or in) a receptacle, at the free spot nearest to ``toward`` (x, z)."""
        c, s, half = np.array(receptacle.centre), np.array(receptacle.size), np.array(thing.size) / 2
        inside = receptacle.object_type in HOLLOW or (
            receptacle.can("openable") and receptacle.object_type not in SURFACES
        )
        room = np.maximum(s / 2 - half - 0.02, 0)
        places = [self.things[n].centre for n in receptacle.contents]
        neighbours = [(float(x), float(z)) for x, _, z in places]
        to_x, to_z = float(toward[0]), float(toward[1])
        spots = [
            (float(c[0] + u * room[0]), float(c[2] + v * room[2]))
            for u in np.linspace(-1, 1, 7)
            for v in np.linspace(-1, 1, 7)
        ]

        def away(spot: tuple[float, float], x: float, z: float) -> float:
            return math.sqrt((spot[0] - x) * (spot[0] - x) + (spot[1] - z) * (spot[1] - z))

        def cost(spot: tuple[float, float]) -> float:
            crowd = sum(max(0.0, 0.4 - away(spot, x, z)) for x, z in neighbours)
            return 20 * crowd + away(spot, to_x, to_z)

        x, z = min(spots, key=cost)
        if inside:
            height = c[1] - s[1] / 2 + half[1] + 0.03
            if receptacle.object_type in ("Sink", "SinkBasin", "GarbageCan", "Bowl", "Pot", "Pan"):
                height = c[1] + s[1] / 2 + half[1] * 0.4
            elif receptacle.object_type in ("Fridge", "Cabinet"):
                # On the middle shelf, toward the door, where an open door shows it.
                axis, sign = receptacle.front
                spot = np.array([x, 0.0, z])
                spot[axis] = c[axis] + sign * max(s[axis] / 2 - half[axis] * 0.9, 0)
                x, z = spot[0], spot[2]
                height = c[1] - s[1] * 0.17 + half[1]
        else:
            height = c[1] + s[1] / 2 + half[1]
        thing.centre = (float(x), float(height), float(z))
        self._detach(thing)
        thing.parent = receptacle.object_id
        receptacle.contents.append(thing.object_id)

    def drop(self, a: dict[str, Any], distance: float, breaks: bool) -> None:
        if self.held is None:
            raise Refused("No object in hand to drop.")
        thing, self.held = self.things[self.held], None
        direction = math.radians(self.yaw)
        reach = distance
        while reach > 0.3 and not self.can_stand(
            self.x + reach * math.sin(direction), self.z + reach * math.cos(direction)
        ):
            reach -= 0.25
        floor = next((t for t in self.things.values() if t.object_type == "Floor"), None)
        thing.centre = (
            self.x + reach * math.sin(direction),
            thing.size[1] / 2 + 0.005,
            self.z + reach * math.cos(direction),
        )
        if floor is not None:
            thing.parent = floor.object_id
            floor.contents.append(thing.object_id)
        if breaks and thing.can("breakable"):
            thing.is_broken = True
        self.changed()

    def open(self, a: dict[str, Any]) -> None:
        thing = self._target(a, "openable", "openable")
        if thing.is_on and thing.object_type == "Microwave":
            raise Refused(f"{thing.object_id} is toggled on, can't open it.")
        self._set(thing, "is_open", True, "is already open")

    def close(self, a: dict[str, Any]) -> None:
        self._set(self._target(a, "openable", "openable"), "is_open", False, "is already closed")

    def toggle(self, a: dict[str, Any], value: bool) -> None:
        thing = self._target(a, "toggleable", "toggleable")
        if value and thing.object_type == "Microwave" and thing.is_open:
            raise Refused(f"{thing.object_id} is open, can't toggle it on.")
        self._set(thing, "is_on", value, f"is already toggled {'on' if value else 'off'}")

    def slice(self, a: dict[str, Any]) -> None:
        self._set(self._target(a, "sliceable", "sliceable"), "is_sliced", True, "is already sliced")

    def break_object(self, a: dict[str, Any]) -> None:
        self._set(self._target(a, "breakable", "breakable"), "is_broken", True, "is already broken")

    def dirty(self, a: dict[str, Any], value: bool) -> None:
        state = "dirty" if value else "clean"
        self._set(self._target(a, "dirtyable", "dirtyable"), "is_dirty", value, f"is already {state}")

    def fill(self, a: dict[str, Any], value: bool) -> None:
        state = "filled" if value else "empty"
        self._set(self._target(a, "canFillWithLiquid", "fillable"), "is_filled", value, f"is already {state}")

    def cook(self, a: dict[str, Any]) -> None:
        self._set(self._target(a, "cookable", "cookable"), "is_cooked", True, "is already cooked")

    def random_spawn(self, a: dict[str, Any]) -> None:
        """Put small objects on random surfaces, as AI2-THOR's InitialRandomSpawn; the seed decides everything."""
        rng = np.random.default_rng(int(a.get("randomSeed", 0)))
        surfaces = [t for t in self.things.values() if t.object_type in SURFACES and max(t.size[0], t.size[2]) > 0.35]
        if not surfaces:
            return
        area = np.array([t.size[0] * t.size[2] for t in surfaces]) ** 0.5
        for thing in self.things.values():
            if not thing.can("pickupable") or thing.contents or thing.object_id == self.held:
                continue
            if rng.random() < 0.35:
                continue
            receptacle = surfaces[int(rng.choice(len(surfaces), p=area / area.sum()))]
            spread = np.array(
                [rng.uniform(-0.5, 0.5) * receptacle.size[0], rng.uniform(-0.5, 0.5) * receptacle.size[2]]
            )
            self.place(thing, receptacle, np.array(receptacle.centre)[[0, 2]] + spread)
        self.changed()

    def initialize(self, a: dict[str, Any]) -> dict[str, float]:
        self.visibility_distance = float(a.get("visibilityDistance") or 1.5)
        self.grid_size = float(a.get("gridSize") or 0.25)
        self.renderer.configure(self.renderer.width, self.renderer.height, float(a.get("fieldOfView") or 90.0))
        self._view = None
        return {"cameraNearPlane": 0.1, "cameraFarPlane": 20.0}

    def change_resolution(self, a: dict[str, Any]) -> None:
        self.renderer.configure(int(a["x"]), int(a["y"]), self.renderer.fov)
        self._view = None

    def reachable_positions(self) -> list[dict[str, float]]:
        """Where an agent can stand, metres."""
        return [{"x": float(x), "y": AGENT_HEIGHT, "z": float(z)} for x, z in self.layout.reachable]

    # --- metadata ------------------------------------------------------------------------------------------------

    def metadata(self, action: str, outcome: Outcome, *, looking: bool = True) -> dict[str, Any]:
        """AI2-THOR's metadata of one agent; distances in metres, rotations in degrees. Not `looking`, nothing is visible."""
        held = [{"objectId": self.held, "objectType": self.things[self.held].object_type}] if self.held else []
        return {
            "agentId": 0,
            "screenWidth": self.renderer.width,
            "screenHeight": self.renderer.height,
            "sceneName": f"{self.layout.scene}_physics",
            "lastAction": action,
            "lastActionSuccess": outcome.success,
            "errorMessage": outcome.message,
            "errorCode": outcome.code,
            "actionReturn": outcome.value,
            "objects": [self._object_metadata(t, looking) for t in self.things.values()],
            "colors": [{"name": name, "color": list(instance_colour(i))} for name, i in self._index.items()],
            "inventoryObjects": held,
            "thirdPartyCameras": [],
            "isSceneAtRest": True,
            "fov": self.renderer.fov,
            "agent": {
                "name": "agent",
                "position": {"x": self.x, "y": AGENT_HEIGHT, "z": self.z},
                "rotation": {"x": 0.0, "y": self.yaw, "z": 0.0},
                "cameraHorizon": self.pitch,
                "isStanding": True,
                "inHighFrictionArea": False,
            },
            "sceneBounds": {
                "center": dict(
                    zip("xyz", ((a + b) / 2 for a, b in zip(self.low, self.high, strict=True)), strict=True)
                ),
                "size": dict(zip("xyz", (b - a for a, b in zip(self.low, self.high, strict=True)), strict=True)),
            },
        }

    def _object_metadata(self, t: Thing, looking: bool) -> dict[str, Any]:
        c, s = t.centre, t.size
        return {
            "objectId": t.object_id,
            "name": t.object_id,
            "objectType": t.object_type,
            "visible": looking and self.is_visible(t),
            "distance": self.distance(t),
            "position": {"x": c[0], "y": c[1], "z": c[2]},
            "rotation": {"x": 0.0, "y": 0.0, "z": 0.0},
            "axisAlignedBoundingBox": {
                "center": {"x": c[0], "y": c[1], "z": c[2]},
                "size": {"x": s[0], "y": s[1], "z": s[2]},
            },
            "pickupable": t.can("pickupable"),
            "openable": t.can("openable"),
            "toggleable": t.can("toggleable"),
            "breakable": t.can("breakable"),
            "sliceable": t.can("sliceable"),
            "dirtyable": t.can("dirtyable"),
            "canFillWithLiquid": t.can("canFillWithLiquid"),
            "cookable": t.can("cookable"),
            "receptacle": t.can("receptacle"),
            "moveable": t.can("moveable"),
            "isPickedUp": t.object_id == self.held,
            "isOpen": t.is_open,
            "openness": 1.0 if t.is_open else 0.0,
            "isToggled": t.is_on,
            "isBroken": t.is_broken,
            "isSliced": t.is_sliced,
            "isDirty": t.is_dirty,
            "isFilledWithLiquid": t.is_filled,
            "isCooked": t.is_cooked,
            "parentReceptacles": [t.parent] if t.parent else None,
            "receptacleObjectIds": list(t.contents) if t.can("receptacle") else None,
        }


def instance_colour(index: int) -> tuple[int, int, int]:
    """The segmentation colour of an object index; distinct for all indices of a scene."""
    code = (index + 1) * 7919 % 16777213
    return code & 255, (code >> 8) & 255, (code >> 16) & 255


def _nothing(household: Household, action: dict[str, Any]) -> None:
    """Pass, Done and settings that mean nothing here."""


_ACTIONS: dict[str, Callable[[Household, dict[str, Any]], Any]] = {
    "Reset": lambda h, a: h.reset(str(a["sceneName"])),
    "GetScenesInBuild": lambda h, a: [f"{s}_physics" for s in scene_names()],
    "Initialize": Household.initialize,
    "ChangeResolution": Household.change_resolution,
    "ChangeQuality": _nothing,
    "Pass": _nothing,
    "Done": _nothing,
    "GetReachablePositions": lambda h, a: h.reachable_positions(),
    "InitialRandomSpawn": Household.random_spawn,
    "Teleport": Household.teleport,
    "TeleportFull": Household.teleport,
    "MoveAhead": lambda h, a: h.move(a, 0),
    "MoveBack": lambda h, a: h.move(a, 180),
    "MoveLeft": lambda h, a: h.move(a, -90),
    "MoveRight": lambda h, a: h.move(a, 90),
    "RotateLeft": lambda h, a: h.rotate(a, -1),
    "RotateRight": lambda h, a: h.rotate(a, 1),
    "LookUp": lambda h, a: h.look(a, -1),
    "LookDown": lambda h, a: h.look(a, 1),
    "PickupObject": Household.pick_up,
    "PutObject": Household.put,
    "DropHandObject": lambda h, a: h.drop(a, 0.5, breaks=False),
    "ThrowObject": lambda h, a: h.drop(a, 1.25, breaks=True),
    "OpenObject": Household.open,
    "CloseObject": Household.close,
    "ToggleObjectOn": lambda h, a: h.toggle(a, True),
    "ToggleObjectOff": lambda h, a: h.toggle(a, False),
    "SliceObject": Household.slice,
    "BreakObject": Household.break_object,
    "DirtyObject": lambda h, a: h.dirty(a, True),
    "CleanObject": lambda h, a: h.dirty(a, False),
    "FillObjectWithLiquid": lambda h, a: h.fill(a, True),
    "EmptyLiquidFromObject": lambda h, a: h.fill(a, False),
    "CookObject": Household.cook,
}
