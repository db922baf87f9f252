"""A scripted planner that knows the truth: proof that a task can be solved, ceiling of every comparison, and teacher of
the base model's weak demonstrations. It acts through the same text actions as the actor."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from scipy.spatial import cKDTree

from selu.player import VISIBLE_SHARE
from selu.records import Condition
from selu.worlds.actions import DONE, SKILL_SETS
from selu.worlds.base import World, holds
from selu.worlds.vocabulary import NAMES, SAME_TYPE

__all__ = ["HasPlanner", "next_action", "random_action", "sibling_goal", "solve", "would_finish"]

VERBS = {
    "held": "PickUp", "open": "Open", "closed": "Close", "on": "ToggleOn", "off": "ToggleOff", "inside": "Put",
    "broken": "Break", "sliced": "Slice", "dirty": "Dirty", "clean": "Clean", "filled": "Fill", "empty": "Empty",
}  # fmt: skip
_STATES = {
    "open": ("isOpen", False), "closed": ("isOpen", True), "on": ("isToggled", False), "off": ("isToggled", True),
    "broken": ("isBroken", False), "sliced": ("isSliced", False),
}  # fmt: skip
ABLE = {
    "held": "pickupable", "open": "openable", "closed": "openable", "on": "toggleable", "off": "toggleable",
    "inside": "receptacle", "broken": "breakable", "sliced": "sliceable",
}  # fmt: skip
GAP = (0.2, 1.15)
"""Metres between agent and box from which a thing can be handled; ThorWorld's Approach stops there too."""
OFF_GRID = 0.18
"""Metres from a reachable position at which one can stand: half the diagonal of the grid."""
PATIENCE = 12
"""Steps on the way to one place before another one is tried, from where the view may be free."""


@runtime_checkable
class HasPlanner(Protocol):
    """A world that plans for itself, because what it knows has another form than AI2-THOR's. See the functions here."""

    def next_action(self, before: Sequence[str], goal: tuple[Condition, ...]) -> str: ...
    def would_finish(self, action: str) -> bool: ...
    def sibling_goal(self, before: Sequence[str]) -> tuple[Condition, ...] | None: ...


def solve(world: World) -> list[str]:
    """Play the running episode of a freshly reset world to its end; returns the actions."""
    actions: list[str] = []
    while True:
        actions.append(next_action(world, actions))
        *_, terminated, truncated, _ = world.step(actions[-1])
        if terminated or truncated:
            return actions


def next_action(world: World, before: Sequence[str], goal: tuple[Condition, ...] | None = None) -> str:
    """What the planner does next towards the goal (default: the running task's), having done ``before``."""
    goal = world.task.goal if goal is None else goal
    if isinstance(world, HasPlanner):
        return world.next_action(before, goal)
    facts = world.oracle().facts
    for condition in goal:
        if not holds((condition,), facts):
            return _towards(condition, world.candidates(), before, world.skill_set)
    return DONE


def would_finish(world: World, action: str) -> bool:
    """Whether an action is the one that fulfils the last open condition of the running task's goal."""
    if isinstance(world, HasPlanner):
        return world.would_finish(action)
    facts = world.oracle().facts
    left = [condition for condition in world.task.goal if not holds((condition,), facts)]
    return len(left) == 1 and action == f"{VERBS[left[0].predicate]}({left[0].receptacle_type or left[0].object_type})"


def sibling_goal(world: World, before: Sequence[str]) -> tuple[Condition, ...] | None:
    """The running task's goal with another thing in its last condition: the nearest to the start of those that it can be
    done to and has not been done to but by ``before``. None where there is no such thing."""
    if isinstance(world, HasPlanner):
        return world.sibling_goal(before)
    *first, last = world.task.goal
    setup, verb, able = world.task.setup, VERBS[last.predicate], ABLE.get(last.predicate, "pickupable")
    near: dict[str, float] = {}
    for o in world.candidates()["metadata"]["objects"]:
        name = SAME_TYPE.get(o["objectType"], o["objectType"])
        if o[able] and name in NAMES and name not in (last.object_type, last.receptacle_type):
            away = math.hypot(o["position"]["x"] - setup.position[0], o["position"]["z"] - setup.position[2])
            # What was picked up moves along; it must not give way to another thing.
            near[name] = -1.0 if f"{verb}({name})" in before else min(away, near.get(name, math.inf))
    facts = world.oracle().facts
    for name in sorted(near, key=lambda name: (near[name], name)):
        sibling = last.model_copy(update={"receptacle_type" if last.predicate == "inside" else "object_type": name})
        if near[name] < 0 or not holds((sibling,), facts):
            return (*first, sibling)
    return None


def _towards(condition: Condition, truth: Mapping[str, Any], before: Sequence[str], skill_set: str) -> str:
    metadata, areas = truth["metadata"], truth["areas"]
    held = {o["objectId"]: o["objectType"] for o in metadata["inventoryObjects"]}
    verb, object_type = VERBS[condition.predicate], condition.object_type
    if condition.predicate == "inside":
        if condition.object_type in held.values():
            assert condition.receptacle_type is not None
            object_type = condition.receptacle_type
        else:
            verb = "PickUp"
    instances = [
        o
        for o in metadata["objects"]
        if SAME_TYPE.get(o["objectType"], o["objectType"]) == object_type
        and o["objectId"] not in held
        and _useful(verb, condition.predicate, o)
    ]
    if not instances:
        return DONE
    name = f"({object_type})"
    last = before[-1] if before else ""
    if any(o["visible"] for o in instances) and last != verb + name:
        if verb == "Put" and all(o["openable"] and not o["isOpen"] for o in instances):
            return "Open" + name
        return verb + name
    nearest = min(instances, key=lambda o: o["distance"])
    if skill_set == "primitives":
        return _walk_to(nearest, truth, before)
    enough = VISIBLE_SHARE * metadata["screenWidth"] * metadata["screenHeight"]
    in_view = [o for o in instances if areas.get(o["objectId"], 0) >= enough]
    if in_view and last != "Approach" + name:
        return "Approach" + name
    return _look_for(nearest, metadata["agent"], last)


def _useful(verb: str, predicate: str, o: Mapping[str, Any]) -> bool:
    if verb in ("PickUp", "Put"):
        return bool(o["pickupable"] if verb == "PickUp" else o["receptacle"])
    state, value = _STATES.get(predicate, (None, None))
    return state is None or o[state] == value


def _look_for(o: Mapping[str, Any], agent: Mapping[str, Any], last: str) -> str:
    dx, dz = o["position"]["x"] - agent["position"]["x"], o["position"]["z"] - agent["position"]["z"]
    turn = _bearing(o, agent)
    if abs(turn) > 30:
        return "RotateRight" if turn > 0 else "RotateLeft"
    drop = math.degrees(math.atan2(1.575 - o["position"]["y"], max(0.2, math.hypot(dx, dz))))
    if drop - agent["cameraHorizon"] > 25 and agent["cameraHorizon"] < 30:
        return "LookDown"
    if agent["cameraHorizon"] - drop > 25 and agent["cameraHorizon"] > -30:
        return "LookUp"
    if last != "MoveAhead":
        return "MoveAhead"
    return "RotateRight"


def _walk_to(o: Mapping[str, Any], truth: Mapping[str, Any], before: Sequence[str]) -> str:
    """A step of the shortest way to where an object can be handled, by single moves and turns, found breadth first; once
    there, a turn towards it."""
    agent, turn, box = truth["metadata"]["agent"], truth["turn"], o["axisAlignedBoundingBox"]
    centre, size = (np.array([box[name]["x"], box[name]["z"]]) for name in ("center", "size"))
    gap = np.linalg.norm(np.maximum(np.abs(truth["reachable"] - centre) - size / 2, 0), axis=1)
    aims = truth["reachable"][(gap >= GAP[0]) & (gap <= GAP[1])]
    if not len(aims):
        aims = truth["reachable"][[gap.argmin()]]
    if tries := len(before) // PATIENCE:
        aims = aims[[tries * 7 % len(aims)]]
    here = np.array([agent["position"]["x"], agent["position"]["z"]])
    heading = _first_heading(here, cKDTree(aims), cKDTree(truth["reachable"]), agent["rotation"]["y"], truth)
    if heading is None:
        heading = _bearing(o, agent) % 360
        if min(heading, 360 - heading) <= turn / 2:
            return _tilt(o, agent)
    elif heading == 0:
        return "MoveAhead"
    return "RotateRight" if heading <= 180 else "RotateLeft"


def _first_heading(here: Any, aims: cKDTree, places: cKDTree, yaw: float, truth: Mapping[str, Any]) -> float | None:
    """Degrees (0..360, to the right of ``yaw``) of the first move of the shortest way; None on arrival or without one."""
    along = np.arange(0.25, truth["stride"] + 0.01, 0.25)[:, None]
    turns = [k * truth["turn"] for k in range(360 // truth["turn"])]
    ways = {t: np.array([math.sin(math.radians(yaw + t)), math.cos(math.radians(yaw + t))]) for t in turns}
    queue: deque[tuple[Any, float | None]] = deque([(here, None)])
    seen = {tuple(np.round(here / 0.2))}
    while queue:
        point, heading = queue.popleft()
        if aims.query(point)[0] <= truth["stride"] / 2:
            return heading
        for t, way in ways.items():
            end = point + truth["stride"] * way
            cell = tuple(np.round(end / 0.2))
            if cell not in seen and places.query(point + along * way)[0].max() <= OFF_GRID:
                seen.add(cell)
                queue.append((end, t if heading is None else heading))
    return None


def _bearing(o: Mapping[str, Any], agent: Mapping[str, Any]) -> float:
    """Degrees to the right of where the agent looks, -180..180."""
    dx, dz = o["position"]["x"] - agent["position"]["x"], o["position"]["z"] - agent["position"]["z"]
    return float((math.degrees(math.atan2(dx, dz)) - agent["rotation"]["y"] + 180) % 360 - 180)


def _tilt(o: Mapping[str, Any], agent: Mapping[str, Any]) -> str:
    away = math.hypot(o["position"]["x"] - agent["position"]["x"], o["position"]["z"] - agent["position"]["z"])
    drop = math.degrees(math.atan2(1.575 - o["position"]["y"], max(0.2, away)))
    lower = drop > agent["cameraHorizon"]
    return "LookDown" if (lower and agent["cameraHorizon"] < 30) or agent["cameraHorizon"] <= -30 else "LookUp"


def random_action(rng: np.random.Generator, skill_set: str = "household") -> str:
    """Any action of the grammar: a verb, and for an interaction any type that has a name."""
    grammar = SKILL_SETS[skill_set]
    verbs = [*grammar.verbs_alone, *grammar.verbs_with_object]
    verb = verbs[int(rng.integers(len(verbs)))]
    if verb in grammar.verbs_alone:
        return verb
    types = list(NAMES)
    return f"{verb}({types[int(rng.integers(len(types)))]})"
