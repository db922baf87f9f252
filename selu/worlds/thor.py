"""AI2-THOR as a world: the unmodified ``ai2thor`` Controller, before the embedded player or the real simulator.

A *simulator* takes AI2-THOR's own actions and answers with a frame and metadata; the *world* turns the actor's text
into them. ``Approach(T)`` and ``Verb(T)`` are skills: they look the object up in the simulator's metadata, as a robot's
low level would, and tell the actor nothing but the next frame.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from selu.config import WorldSettings
from selu.errors import ConfigError, TerminalError, WorldError
from selu.player import VISIBLE_SHARE
from selu.records import Setup, Task
from selu.worlds.actions import DONE, Action, parse_action
from selu.worlds.base import Frame, OracleState, World, until_it_lasts
from selu.worlds.vocabulary import SAME_TYPE

STRIDE = 0.5
"""Metres of one MoveAhead or MoveBack."""
APPROACH_GAP = (0.2, 1.15)
"""Metres between agent and box after Approach; the upper end lies within the visibility distance of 1.5."""
EYE_HEIGHT = 1.575
STATES = {
    "isOpen": ("OpenObject", "CloseObject"),
    "isToggled": ("ToggleObjectOn", "ToggleObjectOff"),
    "isBroken": ("BreakObject", None),
    "isSliced": ("SliceObject", None),
    "isDirty": ("DirtyObject", "CleanObject"),
    "isFilledWithLiquid": ("FillObjectWithLiquid", "EmptyLiquidFromObject"),
}
"""Metadata key -> the actions that set it true and false."""
PHYSICS = {"fixedDeltaTime": 0.02, "autoSimulationSeconds": 0.26, "actionSimulationSeconds": 0.26}
"""What the real simulator is initialised with, so that each action simulates the same time in the same steps (seconds;
ai2thor-rearrangement, pull request 6, whose text and code differ in a name). A build ignores the names it does not know.
"""


@dataclass(frozen=True)
class Observation:
    """A frame ``(H, W, 3) uint8``, AI2-THOR's metadata, and the pixels of each object in view by id."""

    frame: Frame
    metadata: Mapping[str, Any]
    areas: Mapping[str, int]


class Simulator(Protocol):
    """What speaks AI2-THOR's actions."""

    description: Mapping[str, Any]
    """Which build it is and how it was set up, as JSON; empty for the embedded household, which the settings tell."""

    def reset(self, scene: str) -> Observation:
        """Load a scene in its default state."""
        ...

    def step(self, action: str, **arguments: Any) -> Observation:
        """Do one of AI2-THOR's actions."""
        ...

    def prepare(self, action: str, **arguments: Any) -> None:
        """Do one that nobody watches; what is seen of it shows in the next step."""
        ...

    def close(self) -> None:
        """Stop the simulator."""
        ...


class ControllerSimulator:
    """The ``ai2thor`` Controller, with the embedded player unless the settings ask for another or for the real build.

    A player that ends, stalls, answers garbage or shows blank or stale frames is ended at once (see
    :mod:`selu.worlds.supervision`); the call raises WorldError, and the next :meth:`reset` starts another. One that is
    lost in its start is tried again, ``restarts`` times.
    """

    def __init__(self, settings: WorldSettings) -> None:
        from selu.worlds.supervision import PlayerLost

        self._settings = settings
        self._controller: Any = None
        self._seen: Observation | None = None
        until_it_lasts(self._start, settings.restarts, PlayerLost)
        self.description: Mapping[str, Any] = {} if settings.embedded else self._describe()

    def _start(self) -> None:
        from selu.worlds.supervision import PlayerLost, SupervisedController, player_lost

        try:
            self._controller = SupervisedController(**self._arguments())
        except ConfigError:
            raise
        except Exception as error:
            lost = player_lost(error)
            raise (PlayerLost if lost else WorldError)(
                f"The AI2-THOR simulator did not start ({lost or f'{type(error).__name__}: {error}'}). "
                f"{_LOOK}; the embedded player needs no build and no display."
            ) from error

    def _arguments(self) -> dict[str, Any]:
        settings = self._settings
        arguments: dict[str, Any] = {
            "width": settings.width,
            "height": settings.height,
            "fieldOfView": settings.field_of_view,
            "visibilityDistance": settings.visibility_distance,
            "gridSize": settings.grid_size,
            "renderInstanceSegmentation": True,
            "snapToGrid": False,
            "server_timeout": settings.step_timeout,
            "server_start_timeout": settings.start_timeout,
            "quality": settings.quality,
            "scene": "FloorPlan1",
            "local_executable_path": embedded_player_command() if settings.embedded else settings.local_executable_path,
            "platform": settings.platform,
            "x_display": settings.x_display,
        }
        if not settings.embedded:
            arguments |= PHYSICS
        if settings.commit_id is not None:
            arguments["commit_id"] = settings.commit_id
        if arguments["local_executable_path"] is not None and settings.x_display is None:
            # The client insists on a display's name, even where nothing opens one.
            arguments["x_display"] = os.environ.get("DISPLAY", ":99")
        return arguments

    def _describe(self) -> dict[str, Any]:
        """Which simulator this is, and what its client was told; nothing that differs from start to start."""
        from ai2thor import __version__

        patience = {"server_timeout", "server_start_timeout", "x_display"}
        told = {name: value for name, value in self._arguments().items() if name not in patience}
        return {"client": f"ai2thor {__version__}", "build": self._controller.build_id(), "arguments": told}

    def reset(self, scene: str) -> Observation:
        self._seen = None
        if self._controller is None:
            self._start()
        return self._observe(f"the reset to {scene}", lambda: self._controller.reset(scene))

    def step(self, action: str, **arguments: Any) -> Observation:
        controller = self._running()
        return self._observe(action, lambda: controller.step(action=action, **arguments))

    def prepare(self, action: str, **arguments: Any) -> None:
        if not self._settings.embedded:
            self.step(action, **arguments)  # each picture of a real build is watched over
            return
        # Pictures of rooms half prepared took a quarter of the time of drawing tasks and beginning them.
        controller = self._running()
        self._call(action, lambda: controller.step(action=action, renderImage=False, **arguments))

    def _running(self) -> Any:
        if self._controller is None:
            raise WorldError("The AI2-THOR simulator was lost; a reset starts it again.")
        return self._controller

    def _call(self, doing: str, call: Callable[[], Any]) -> Any:
        """The event that a call of the client gives."""
        from selu.worlds.supervision import PlayerLost, player_lost

        try:
            return call()
        except Exception as error:
            lost = player_lost(error)
            if lost is None and isinstance(error, ValueError):
                raise ConfigError(f"AI2-THOR refused an action as malformed: {error}") from error
            self.close()
            raise PlayerLost(_lost(doing, lost or f"{type(error).__name__}: {error}")) from error

    def _observe(self, doing: str, call: Callable[[], Any]) -> Observation:
        from selu.worlds.supervision import PlayerLost, suspicion

        event = self._call(doing, call)
        try:
            seen = self._observation(event)
            doubt = suspicion(self._seen, seen)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            self.close()
            raise PlayerLost(_lost(doing, f"it answered garbage, {type(error).__name__}: {error}")) from error
        if doubt is not None:
            self.close()
            raise PlayerLost(_lost(doing, doubt))
        self._seen = seen
        return seen

    def _observation(self, event: Any) -> Observation:
        """Raises what one gets from using an answer that lacks something."""
        frame, wanted = event.frame, (self._settings.height, self._settings.width, 3)
        if frame.shape != wanted or frame.dtype != np.uint8:
            raise ValueError(f"a frame must be {wanted} uint8, got {frame.shape} {frame.dtype}")
        seen = Observation(np.ascontiguousarray(frame), event.metadata, _areas(event))
        facts_of(seen)
        return seen

    def close(self) -> None:
        controller, self._controller = self._controller, None
        if controller is not None:
            with suppress(Exception):  # a dead player must not keep a run from ending
                controller.stop()


_LOOK = "Run `selu doctor` to see what is missing, or read ~/.ai2thor/log/unity.log"


def _lost(doing: str, reason: object) -> str:
    return f"The AI2-THOR simulator was lost in {doing}: {reason}. What it printed is in ~/.ai2thor/log/unity.log."


def embedded_player_command() -> str:
    """The command line that starts the embedded player with this Python."""
    return f"{shlex.quote(sys.executable)} -m selu.player.server"


def _areas(event: Any) -> dict[str, int]:
    masks = event.instance_masks
    keys, counts = np.unique(masks.instance_segmentation_frame_uint32, return_counts=True)
    by_colour = dict(zip((int(k) & 0xFFFFFF for k in keys), counts.tolist(), strict=True))
    areas = {}
    for name, (r, g, b) in masks.instance_colors.items():
        count = by_colour.get(r | g << 8 | b << 16)
        if count:
            areas[name] = count
    return areas


class PlayerSimulator:
    """The embedded household in this process, without the protocol: the same answers, for building corpora."""

    description: Mapping[str, Any] = {}

    def __init__(self, settings: WorldSettings) -> None:
        from selu.player.household import Household

        self._household = Household(settings.width, settings.height)
        self._initialise = {
            "fieldOfView": settings.field_of_view,
            "visibilityDistance": settings.visibility_distance,
            "gridSize": settings.grid_size,
        }

    def reset(self, scene: str) -> Observation:
        self._household.reset(scene)
        return self.step("Initialize", **self._initialise)

    def prepare(self, action: str, **arguments: Any) -> None:
        self._household.act({"action": action, **arguments})

    def step(self, action: str, **arguments: Any) -> Observation:
        household = self._household
        outcome = household.act({"action": action, **arguments})
        frame = household.view().rgb
        pixels = household.pixels()
        areas = {n: int(c) for n, c in zip(household.instance_ids(), pixels, strict=True) if c}
        return Observation(frame, household.metadata(action, outcome), areas)

    def close(self) -> None:
        """Nothing to stop."""


class ThorWorld(World):
    """Household tasks in AI2-THOR."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - declared so by Gymnasium

    def __init__(self, simulator: Simulator, settings: WorldSettings) -> None:
        self.simulator, self.settings = simulator, settings
        self.skill_set = settings.skill_set
        shape = (settings.height, settings.width, 3)
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Text(max_length=64, min_length=0)
        self.render_mode = "rgb_array"
        self.metadata = {**type(self).metadata, "simulator": simulator.description}
        self._task: Task | None = None
        self._places: NDArray[np.float64] | None = None
        self._said: str | None = None

    # --- Gymnasium ---------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        super().reset(seed=seed)
        if options is None or not isinstance(options.get("task"), Task):
            raise ConfigError("reset needs options={'task': Task}: a task says in which scene and how to start.")
        self._task = options["task"]
        self._steps, self._places = 0, None
        self._seen = self.simulator.reset(self._task.scene)
        if not self.settings.embedded:
            # A real build searches from where the agent stands, and fails from a place that is none. Now it stands where
            # AI2-THOR has put it.
            self._standing_places()
        self._prepare(self._task.setup)
        self._success, self._message = True, ""
        return self._seen.frame, {}

    def _prepare(self, setup: Setup) -> None:
        prepare = self.simulator.prepare
        prepare("InitialRandomSpawn", randomSeed=setup.spawn_seed, forceVisible=False, placeStationary=True)
        for object_id, states in setup.states.items():
            for key, value in states.items():
                action = STATES[key][0 if value else 1]
                if action is not None:
                    prepare(action, objectId=object_id, forceAction=True)
        if setup.held is not None:
            prepare("PickupObject", objectId=setup.held, forceAction=True)
        x, y, z = setup.position
        self._do(
            "TeleportFull",
            position={"x": x, "y": y, "z": z},
            rotation={"x": 0.0, "y": setup.rotation, "z": 0.0},
            horizon=setup.horizon,
            standing=True,
            forceAction=True,
        )

    def step(self, action: str) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        self._success, self._message = True, ""
        parsed = parse_action(action, self.skill_set)
        if parsed is None:
            self._success, self._message = False, "the text is not an action"
        elif parsed.verb != DONE:
            self._perform(parsed)
        terminated = parsed is not None and parsed.verb == DONE
        truncated = not terminated and self._steps >= self.settings.max_steps
        return self._seen.frame, 0.0, terminated, truncated, {}

    def render(self) -> Any:
        return self._seen.frame

    def close(self) -> None:
        self.simulator.close()

    @property
    def task(self) -> Task:
        assert self._task is not None, "reset comes first"
        return self._task

    # --- skills ------------------------------------------------------------------------------------------------

    @property
    def _stride(self) -> float:
        return max(STRIDE, self.settings.grid_size)

    def _do(self, action: str, **arguments: Any) -> bool:
        self._seen = self.simulator.step(action, **arguments)
        return bool(self._seen.metadata["lastActionSuccess"])

    def _perform(self, action: Action) -> None:
        verb, metadata = action.verb, self._seen.metadata
        if verb in ("MoveAhead", "MoveBack"):
            done = self._do(verb, moveMagnitude=self._stride)
        elif verb in ("RotateLeft", "RotateRight"):
            done = self._do(verb, degrees=self.settings.rotate_degrees)
        elif verb in ("LookUp", "LookDown"):
            done = self._do(verb, degrees=30)
        elif verb == "Drop":
            done = self._do("DropHandObject", forceAction=False)
        elif verb == "Throw":
            done = self._do("ThrowObject", moveMagnitude=150.0)
        elif verb == "Approach":
            assert action.object_type is not None
            done = self._approach(action.object_type)
            if not done:
                self._success, self._message = False, f"no {action.object_type} in view that can be walked up to"
                return
        else:
            assert action.object_type is not None
            target = self._target(verb, action.object_type)
            if target is None:
                self._success, self._message = False, f"no {action.object_type} within reach"
                return
            name, extra = _INTERACTIONS[verb]
            done = self._do(name, objectId=target["objectId"], **extra)
        metadata = self._seen.metadata
        self._success = done
        self._message = "" if done else str(metadata["errorMessage"])

    def _target(self, verb: str, object_type: str) -> Mapping[str, Any] | None:
        """The nearest visible instance of a type; among these, one that the verb can change, if there is one."""
        held = {o["objectId"] for o in self._seen.metadata["inventoryObjects"]}
        found: list[Mapping[str, Any]] = [
            o
            for o in self._seen.metadata["objects"]
            if _is_type(o, object_type) and o["visible"] and (o["objectId"] not in held or verb in _ON_HELD)
        ]
        if verb == "Put":
            found = [o for o in found if o["receptacle"]]
        if not found:
            return None
        return min(found, key=lambda o: (not _applies(verb, o), round(o["distance"], 3), o["objectId"]))

    def _approach(self, object_type: str) -> bool:
        metadata = self._seen.metadata
        enough = VISIBLE_SHARE * self.settings.width * self.settings.height
        held = {o["objectId"] for o in metadata["inventoryObjects"]}
        found = [
            o
            for o in metadata["objects"]
            if _is_type(o, object_type)
            and self._seen.areas.get(o["objectId"], 0) >= enough
            and o["objectId"] not in held
        ]
        if not found:
            return False
        target = min(found, key=lambda o: (-self._seen.areas[o["objectId"]] // 40, o["distance"], o["objectId"]))
        agent = metadata["agent"]
        start = {
            "position": dict(agent["position"]),
            "rotation": dict(agent["rotation"]),
            "horizon": agent["cameraHorizon"],
            "standing": True,
        }
        here = np.array([agent["position"]["x"], agent["position"]["z"]])
        for x, z, yaw, horizon in self._poses_before(target, here)[:5]:
            moved = self._do(
                "TeleportFull",
                position={"x": x, "y": agent["position"]["y"], "z": z},
                rotation={"x": 0.0, "y": yaw, "z": 0.0},
                horizon=horizon,
                standing=True,
            )
            if moved and any(
                o["objectId"] == target["objectId"] and o["visible"] for o in self._seen.metadata["objects"]
            ):
                return True
        self._do("TeleportFull", **start, forceAction=True)
        return False

    def _poses_before(self, target: Mapping[str, Any], here: NDArray[np.float64]) -> list[tuple[float, ...]]:
        """Where one could stand before an object (x, z, yaw, horizon), the best first: near it and near ``here``."""
        reachable = self._standing_places()
        box = target["axisAlignedBoundingBox"]
        centre = np.array([box["center"]["x"], box["center"]["z"]])
        half = np.array([box["size"]["x"], box["size"]["z"]]) / 2
        gap = np.linalg.norm(np.maximum(np.abs(reachable - centre) - half, 0), axis=1)
        cost = np.abs(gap - 0.6) + 0.35 * np.linalg.norm(reachable - here, axis=1)
        cost[(gap < APPROACH_GAP[0]) | (gap > APPROACH_GAP[1])] += 100
        poses: list[tuple[float, ...]] = []
        for k in np.argsort(cost, kind="stable")[:8]:
            if cost[k] >= 100:
                break
            offset = centre - reachable[k]
            turn = self.settings.rotate_degrees
            yaw = round(math.degrees(math.atan2(offset[0], offset[1])) / turn) * turn % 360
            drop = math.degrees(math.atan2(EYE_HEIGHT - box["center"]["y"], max(0.3, float(np.linalg.norm(offset)))))
            horizon = min(30.0, max(-30.0, round(drop / 30) * 30.0))
            poses.append((float(reachable[k][0]), float(reachable[k][1]), float(yaw), horizon))
        return poses

    def _standing_places(self) -> NDArray[np.float64]:
        """Where one can stand (n, 2), x and z in metres; none where the simulator does not tell."""
        if self._places is None:
            seen = self._seen
            self._do("GetReachablePositions")
            points, self._said = self._seen.metadata["actionReturn"] or (), self._seen.metadata.get("errorMessage")
            self._seen = seen  # the question changes nothing
            self._places = np.array([[p["x"], p["z"]] for p in points], dtype=np.float64).reshape(-1, 2)
        return self._places

    # --- truth -------------------------------------------------------------------------------------------------

    def oracle(self) -> OracleState:
        return OracleState(self._success, self._message, facts_of(self._seen))

    def candidates(self) -> Mapping[str, Any]:
        places = self._standing_places()
        if not len(places):
            raise TerminalError(
                f"AI2-THOR does not tell where one can stand in {self.task.scene} ({self._said or 'it says nothing'}); name "
                "other scenes in tasks.scenes"
            )
        return {
            "metadata": self._seen.metadata,
            "areas": self._seen.areas,
            "reachable": places,
            "stride": self._stride,
            "turn": self.settings.rotate_degrees,
        }


_INTERACTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "PickUp": ("PickupObject", {}),
    "Put": ("PutObject", {"placeStationary": True}),
    "Open": ("OpenObject", {}),
    "Close": ("CloseObject", {}),
    "ToggleOn": ("ToggleObjectOn", {}),
    "ToggleOff": ("ToggleObjectOff", {}),
    "Slice": ("SliceObject", {}),
    "Break": ("BreakObject", {}),
    "Dirty": ("DirtyObject", {}),
    "Clean": ("CleanObject", {}),
    "Fill": ("FillObjectWithLiquid", {"fillLiquid": "water"}),
    "Empty": ("EmptyLiquidFromObject", {}),
}
_ON_HELD = {"Slice", "Break", "Dirty", "Clean", "Fill", "Empty", "Open", "Close", "ToggleOn", "ToggleOff"}
_CHANGES = {
    "Open": ("openable", "isOpen", False),
    "Close": ("openable", "isOpen", True),
    "ToggleOn": ("toggleable", "isToggled", False),
    "ToggleOff": ("toggleable", "isToggled", True),
    "Slice": ("sliceable", "isSliced", False),
    "Break": ("breakable", "isBroken", False),
    "Dirty": ("dirtyable", "isDirty", False),
    "Clean": ("dirtyable", "isDirty", True),
    "Fill": ("canFillWithLiquid", "isFilledWithLiquid", False),
    "Empty": ("canFillWithLiquid", "isFilledWithLiquid", True),
}
"""Verb -> what the object must be able to do, and the state it must be in, for the verb to change it."""


def _applies(verb: str, o: Mapping[str, Any]) -> bool:
    if verb == "PickUp":
        return bool(o["pickupable"])
    if verb == "Put":
        return not o["openable"] or bool(o["isOpen"])
    able, state, value = _CHANGES[verb]
    return bool(o[able]) and o[state] == value


def _is_type(o: Mapping[str, Any], object_type: str) -> bool:
    own = o["objectType"]
    return bool(own == object_type or SAME_TYPE.get(own) == object_type)


def facts_of(seen: Observation) -> dict[str, Any]:
    """What holds in the simulator's metadata, as :class:`OracleState` has it, with the agent's pose."""
    objects = seen.metadata["objects"]

    def types(able: str, state: str, value: bool) -> list[str]:
        having = {o["objectType"] for o in objects if o[able]}
        true = {o["objectType"] for o in objects if o[able] and o[state]}
        return sorted(true if value else having - true)

    held = sorted({o["objectType"] for o in seen.metadata["inventoryObjects"]})
    by_id = {o["objectId"]: o["objectType"] for o in objects}
    inside = {
        (o["objectType"], SAME_TYPE.get(by_id[p], by_id[p]))
        for o in objects
        for p in o["parentReceptacles"] or ()
        if p in by_id and not o["isPickedUp"]
    }
    agent = seen.metadata["agent"]
    return {
        "held": held,
        "open": types("openable", "isOpen", True),
        "closed": types("openable", "isOpen", False),
        "on": types("toggleable", "isToggled", True),
        "off": types("toggleable", "isToggled", False),
        "broken": types("breakable", "isBroken", True),
        "sliced": types("sliceable", "isSliced", True),
        "dirty": types("dirtyable", "isDirty", True),
        "clean": types("dirtyable", "isDirty", False),
        "filled": types("canFillWithLiquid", "isFilledWithLiquid", True),
        "empty": types("canFillWithLiquid", "isFilledWithLiquid", False),
        "inside": [list(pair) for pair in sorted(inside)],
        "in_view": sorted({by_id[k] for k in seen.areas if k in by_id}),
        "position": [round(agent["position"][k], 3) for k in "xyz"],
        "rotation": agent["rotation"]["y"],
        "horizon": agent["cameraHorizon"],
    }
