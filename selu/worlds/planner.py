"""A scripted planner that knows the truth: proof that a task can be solved, ceiling of every comparison, and teacher of
the base model's weak demonstrations. It acts through the same text actions as the actor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selu.records import Condition
from selu.worlds.actions import DONE, GRAMMAR
from selu.worlds.base import World, holds
from selu.worlds.vocabulary import NAMES

__all__ = ["next_action", "random_action", "solve"]

VERBS = {
    "held": "PickUp", "open": "Open", "closed": "Close", "on": "ToggleOn", "off": "ToggleOff", "inside": "Put",
    "broken": "Break", "sliced": "Slice", "dirty": "Dirty", "clean": "Clean", "filled": "Fill", "empty": "Empty",
}  # fmt: skip
SAME_TYPE = {"SinkBasin": "Sink"}
IN_VIEW_SHARE = 0.0012
_STATES = {
    "open": ("isOpen", False), "closed": ("isOpen", True), "on": ("isToggled", False), "off": ("isToggled", True),
    "broken": ("isBroken", False), "sliced": ("isSliced", False),
}  # fmt: skip


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
    facts = world.oracle().facts
    for condition in world.task.goal if goal is None else goal:
        if not holds((condition,), facts):
            return _towards(condition, world.candidates(), before)
    return DONE


def _towards(condition: Condition, truth: Mapping[str, Any], before: Sequence[str]) -> str:
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
    enough = IN_VIEW_SHARE * metadata["screenWidth"] * metadata["screenHeight"]
    in_view = [o for o in instances if areas.get(o["objectId"], 0) >= enough]
    if in_view and last != "Approach" + name:
        return "Approach" + name
    return _look_for(min(instances, key=lambda o: o["distance"]), metadata["agent"], last)


def _useful(verb: str, predicate: str, o: Mapping[str, Any]) -> bool:
    if verb in ("PickUp", "Put"):
        return bool(o["pickupable"] if verb == "PickUp" else o["receptacle"])
    state, value = _STATES.get(predicate, (None, None))
    return state is None or o[state] == value


def _look_for(o: Mapping[str, Any], agent: Mapping[str, Any], last: str) -> str:
    dx, dz = o["position"]["x"] - agent["position"]["x"], o["position"]["z"] - agent["position"]["z"]
    turn = (math.degrees(math.atan2(dx, dz)) - agent["rotation"]["y"] + 180) % 360 - 180
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


def random_action(rng: np.random.Generator) -> str:
    """Any action of the grammar: a verb, and for an interaction any type that has a name."""
    verbs = [*GRAMMAR.verbs_alone, *GRAMMAR.verbs_with_object]
    verb = verbs[int(rng.integers(len(verbs)))]
    if verb in GRAMMAR.verbs_alone:
        return verb
    types = list(NAMES)
    return f"{verb}({types[int(rng.integers(len(types)))]})"
