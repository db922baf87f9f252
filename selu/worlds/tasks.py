"""Tasks: an instruction in a scene, a start, and a goal; drawn by a seed and proven solvable by the planner.

A goal is about the end of an episode. `open the drawer` starts with every drawer closed and is done if one is open;
`close the drawer` starts with one open and is done if none is. Other things are open or on at random, so that what is
open in the picture is not always what was asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from selu.config import Split, TaskSettings, scenes_of_split
from selu.errors import ConfigError
from selu.records import Condition, Setup, Task
from selu.worlds.base import World, holds, until_it_lasts
from selu.worlds.vocabulary import CHARACTER, NAMES, spoken_name, type_of

__all__ = [
    "ENCLOSING",
    "FROZEN",
    "THREE_STEPS",
    "THREE_STEPS_LIMIT",
    "Draft",
    "HasKinds",
    "HasScenes",
    "changing",
    "frozen_tasks",
    "generate_tasks",
    "goal_of_instruction",
    "has_probes",
    "instructions_text",
    "join_steps",
    "kind_of_instruction",
    "probe_set",
    "probe_size",
    "probe_tasks",
    "read_instructions",
    "start_key",
    "steps_of",
    "verbs_of",
]

FROZEN = Path(__file__).parent / "frozen"
PICKUPABLE = tuple(NAMES)[: tuple(NAMES).index("Fridge")]
OPENABLE = ("Laptop", "Box", "Fridge", "Microwave", "Cabinet", "Drawer", "Toilet")
TOGGLEABLE = ("Candle", "DeskLamp", "FloorLamp", "Television", "CoffeeMachine")
BREAKABLE = ("Mug", "Bowl", "Plate", "Vase", "Laptop", "Television")
SLICEABLE = ("Apple", "Bread")
RECEPTACLES = (
    "Fridge", "Microwave", "Cabinet", "CounterTop", "DiningTable", "Desk", "SideTable", "CoffeeTable", "Bed", "Sofa",
    "Sink", "GarbageCan", "Dresser",
)  # fmt: skip
ENCLOSING = frozenset({"Fridge", "Microwave", "Cabinet", "Drawer", "Box", "Sink", "GarbageCan", "Toilet", "Laptop"})
"""Receptacles one puts things *in*."""
MANY = ("Cabinet", "Drawer")
ATTEMPTS = 40
"""Draws for one task before the generator says that the scenes have none."""


@dataclass(frozen=True)
class Draft:
    """What a kind of task asks for, before it has a start pose."""

    instruction: str
    goal: tuple[Condition, ...]
    target: str
    """Object id that the start pose is chosen by."""
    states: Mapping[str, Mapping[str, bool]]
    held: str | None = None


Objects = Sequence[Mapping[str, Any]]


@runtime_checkable
class HasScenes(Protocol):
    """A world whose scenes are not iTHOR's."""

    def scenes(self, split: Split) -> Sequence[str]:
        """Names of the scenes of a split."""
        ...


@runtime_checkable
class HasKinds(Protocol):
    """A world with kinds of task of its own; its candidates describe objects in AI2-THOR's words."""

    kinds: Mapping[str, Callable[[Objects, np.random.Generator], Draft | None]]
    """Kind -> what draws one of a scene's objects, or gives None where there is nothing to do it to."""


def start_key(task: Task) -> tuple[Any, ...]:
    """What must differ between practice and probe: scene, goal objects, start pose."""
    about = tuple(sorted({c.object_type for c in task.goal}))
    return (task.scene, about, task.setup.position, task.setup.rotation)


def generate_tasks(
    settings: TaskSettings,
    world: World | Sequence[World],
    seed: int,
    count: int,
    *,
    freezing: bool = False,
    restarts: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Task]:
    """``count`` tasks; the same settings and seed give the same tasks, drawn in one world or in several side by side.

    Kinds and scenes take turns. Each task is played once by the planner, and one that it cannot solve within the step
    limit is drawn again, as is one of the learning scenes that begins like one of probe A (unless it is probe A that is
    being made: ``freezing``). In a share of them (``settings.unsolvable``) the instruction then names an object that is not
    in the scene. A user's own instructions (``settings.instructions``) are taken as they are, each with a random start; the
    goal is read from the words where they are of the generator's form, and of others it stays unknown.

    A task whose world is lost is drawn again, ``restarts`` times at most; a world's ``reset`` brings up again what was lost.

    Raises:
        ConfigError: the scenes hold no solvable task of a kind.
        WorldError: a task lost its world once more than that.
    """
    worlds = [world] if isinstance(world, World) else list(world)
    scenes = scenes_of(settings, worlds[0])
    texts = None if settings.instructions is None else read_instructions(settings.instructions)
    reserved = set()
    if settings.split == "learning" and not freezing:
        # What is practised in another world begins in none of these scenes.
        reserved = {start_key(t) for path in FROZEN.glob("*probe_a.jsonl") for t in frozen_tasks(path.stem)}
    shuffled = np.random.default_rng(np.random.SeedSequence([seed, count])).permutation(count)
    spoiled = {int(i) for i in shuffled[: round(settings.unsolvable * count)]}
    tasks: dict[int, Task] = {}

    def draw(i: int, world: World) -> Task:
        if texts is not None:
            return _own_task(texts[i % len(texts)], world, scenes, seed, i)
        return _draw_solvable(settings, world, scenes, reserved, seed, i, absent=i in spoiled)

    def draw_every(lane: int) -> None:
        for i in range(lane, count, len(worlds)):
            tasks[i] = until_it_lasts(partial(draw, i, worlds[lane]), restarts)
            if progress is not None:
                progress(len(tasks), count)

    with ThreadPoolExecutor(max_workers=len(worlds)) as threads:
        list(threads.map(draw_every, range(len(worlds))))
    return [tasks[i] for i in range(count)]


def scenes_of(settings: TaskSettings, world: World) -> Sequence[str]:
    """The scenes that are practised in. Raises ConfigError if some are named that the world does not have."""
    if not isinstance(world, HasScenes):
        return settings.scenes or scenes_of_split(settings.split)
    if settings.scenes:
        raise ConfigError(
            f"tasks.scenes names scenes of iTHOR ({settings.scenes[0]}), but this world has its own; leave tasks.scenes "
            "empty and choose by tasks.split"
        )
    return world.scenes(settings.split)


def _draw_solvable(
    settings: TaskSettings,
    world: World,
    scenes: Sequence[str],
    reserved: Container[object],
    seed: int,
    number: int,
    *,
    absent: bool,
) -> Task:
    """The task of this number, which depends on no other."""
    kind = settings.kinds[number % len(settings.kinds)]
    rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
    # Which scenes have tasks of a kind depends on the room (no toilet in a kitchen): they are tried in a shuffled order.
    order = rng.permutation(len(scenes))
    for attempt in range(ATTEMPTS):
        scene = scenes[int(order[attempt % len(scenes)])]
        task = _draw(kind, scene, world, rng)
        if task is not None and start_key(task) not in reserved and _is_solvable(task, world):
            task = _about_something_absent(task, world, rng) if absent else task
            if task is not None:
                return task
    raise ConfigError(
        f"No solvable task of kind `{kind}` was found in {len(scenes)} scenes after {ATTEMPTS} draws. "
        "Leave the kind out of tasks.kinds, or name more scenes in tasks.scenes."
    )


def _draw(kind: str, scene: str, world: World, rng: np.random.Generator) -> Task | None:
    spawn_seed = int(rng.integers(2**31))
    blank = _finish(scene, kind, "look around", (), Setup(spawn_seed=spawn_seed, position=(0, 0.9, 0), rotation=0))
    world.reset(options={"task": blank})
    truth = world.candidates()
    kinds = world.kinds if isinstance(world, HasKinds) else _KINDS
    if "metadata" not in truth or kind not in kinds:
        known = f"it knows {', '.join(kinds)}" if "metadata" in truth else "no objects are known to draw them of"
        raise ConfigError(
            f"Tasks of kind `{kind}` cannot be drawn in this world: {known}. Change tasks.kinds, or give a list of your "
            "own in tasks.instructions."
        )
    objects: Objects = truth["metadata"]["objects"]
    draft = kinds[kind](objects, rng)
    if draft is None:
        return None
    states = {**_distractions(objects, draft, rng), **{k: dict(v) for k, v in draft.states.items()}}
    position, rotation = _start_pose(draft.target, objects, truth["reachable"], rng)
    setup = Setup(spawn_seed=spawn_seed, states=states, held=draft.held, position=position, rotation=rotation)
    return _finish(scene, kind, draft.instruction, draft.goal, setup)


def _finish(scene: str, kind: str, instruction: str, goal: tuple[Condition, ...], setup: Setup) -> Task:
    content = json.dumps([scene, kind, instruction, setup.model_dump(mode="json")], sort_keys=True)
    return Task(
        task_id=hashlib.sha256(content.encode()).hexdigest()[:16],
        scene=scene,
        kind=kind,
        instruction=instruction,
        goal=goal,
        setup=setup,
    )


def _is_solvable(task: Task, world: World) -> bool:
    from selu.worlds.planner import solve  # the planner knows tasks

    world.reset(options={"task": task})
    if holds(task.goal, world.oracle().facts):
        return False
    solve(world)
    return holds(task.goal, world.oracle().facts)


def _about_something_absent(task: Task, world: World, rng: np.random.Generator) -> Task | None:
    """The same task about an object that the scene does not have, in place of its first; None if it has all of them."""
    first, *rest = task.goal
    present = {o["objectType"] for o in world.candidates()["metadata"]["objects"]}
    absent = sorted({*_ABLE[first.predicate]} - present)
    if not absent:
        return None
    missing = absent[int(rng.integers(len(absent)))]
    before, name, after = task.instruction.partition(spoken_name(first.object_type))
    instruction = before + (spoken_name(missing) if name else "") + after
    goal = (first.model_copy(update={"object_type": missing}), *rest)
    return _finish(task.scene, task.kind, instruction, goal, task.setup)


def _start_pose(
    target: str, objects: Objects, reachable: np.ndarray[Any, np.dtype[np.float64]], rng: np.random.Generator
) -> tuple[tuple[float, float, float], float]:
    """Somewhere 1.7 to 5 m from the target, so that it must be walked up to, looking roughly its way half of the time."""
    centre = next(o for o in objects if o["objectId"] == target)["position"]
    offsets = np.array([centre["x"], centre["z"]]) - reachable
    distance = np.linalg.norm(offsets, axis=1)
    near = np.flatnonzero((distance > 1.7) & (distance < 5.0))
    # In a small room: among the farthest places.
    k = int(rng.choice(near if len(near) >= 5 else np.argsort(-distance)[:10]))
    facing = np.degrees(np.arctan2(offsets[k, 0], offsets[k, 1]))
    turn = float(rng.choice([-45, 0, 0, 45])) if rng.random() < 0.5 else float(rng.integers(8) * 45)
    yaw = float((round(facing / 45) * 45 + turn) % 360)
    return (float(reachable[k, 0]), 0.9, float(reachable[k, 1])), yaw


def _distractions(objects: Objects, draft: Draft, rng: np.random.Generator) -> dict[str, dict[str, bool]]:
    """Random states of things that the goal is not about."""
    about = {c.object_type for c in draft.goal} | {c.receptacle_type for c in draft.goal}
    states: dict[str, dict[str, bool]] = {}
    for o in objects:
        if o["objectType"] in about:
            continue
        if o["objectType"] in OPENABLE and o["openable"] and rng.random() < (0.08 if o["objectType"] in MANY else 0.25):
            states[o["objectId"]] = {"isOpen": True}
        elif o["objectType"] in TOGGLEABLE and o["toggleable"]:
            states[o["objectId"]] = {"isToggled": bool(rng.random() < 0.35)}
    return states


# --- kinds -----------------------------------------------------------------------------------------------------------


def _instances(objects: Objects, types: Iterable[str], able: str) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for o in objects:
        if o["objectType"] in types and o[able]:
            found.setdefault(o["objectType"], []).append(o)
    return found


def _choose(found: Mapping[str, Any], rng: np.random.Generator, without: Iterable[str] = ()) -> str | None:
    left = sorted(set(found) - set(without))
    return left[int(rng.integers(len(left)))] if left else None


def _pick_up(objects: Objects, rng: np.random.Generator, without: Iterable[str] = ()) -> Draft | None:
    found = _instances(objects, PICKUPABLE, "pickupable")
    chosen = _choose(found, rng, without)
    if chosen is None:
        return None
    goal = (Condition(predicate="held", object_type=chosen),)
    return Draft(f"pick up the {spoken_name(chosen)}", goal, found[chosen][0]["objectId"], {})


def changing(
    types: tuple[str, ...], able: str, state: str, to: bool, predicate: str, phrase: str
) -> Callable[..., Draft | None]:
    """A kind that turns ``state`` of one instance; every other instance of the type starts as the goal needs it."""

    def draw(objects: Objects, rng: np.random.Generator, without: Iterable[str] = ()) -> Draft | None:
        found = _instances(objects, types, able)
        chosen = _choose(found, rng, without)
        if chosen is None:
            return None
        target = found[chosen][int(rng.integers(len(found[chosen])))]
        # To turn on: all are off. To turn off: only the target is on.
        states = {o["objectId"]: {state: not to and o is target} for o in found[chosen]}
        goal = (Condition.model_validate({"predicate": predicate, "object_type": chosen}),)
        return Draft(phrase.format(spoken_name(chosen)), goal, target["objectId"], states)

    return draw


_open = changing(OPENABLE, "openable", "isOpen", True, "open", "open the {}")
_close = changing(OPENABLE, "openable", "isOpen", False, "closed", "close the {}")
_toggle_on = changing(TOGGLEABLE, "toggleable", "isToggled", True, "on", "turn on the {}")
_toggle_off = changing(TOGGLEABLE, "toggleable", "isToggled", False, "off", "turn off the {}")
_break = changing(BREAKABLE, "breakable", "isBroken", True, "broken", "break the {}")
_slice = changing(SLICEABLE, "sliceable", "isSliced", True, "sliced", "slice the {}")


def put_instruction(object_type: str, receptacle_type: str) -> str:
    """`put the mug in the fridge`, `put the mug on the desk`."""
    preposition = "in" if receptacle_type in ENCLOSING else "on"
    return f"put the {spoken_name(object_type)} {preposition} the {spoken_name(receptacle_type)}"


def _put(objects: Objects, rng: np.random.Generator, without: Iterable[str] = ()) -> Draft | None:
    small = _instances(objects, PICKUPABLE, "pickupable")
    chosen = _choose({t: i for t, i in small.items() if len(i) == 1}, rng, without)
    places = _instances(objects, {*RECEPTACLES, "SinkBasin"}, "receptacle")
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for own, instances in places.items():
        by_name.setdefault("Sink" if own == "SinkBasin" else own, []).extend(instances)
    place = _choose(by_name, rng)
    if chosen is None or place is None:
        return None
    thing = small[chosen][0]
    target = by_name[place][int(rng.integers(len(by_name[place])))]
    # One step: the thing is in hand, and what has a door stands open.
    states = {target["objectId"]: {"isOpen": True}} if target["openable"] else {}
    goal = (Condition(predicate="inside", object_type=chosen, receptacle_type=place),)
    return Draft(put_instruction(chosen, place), goal, target["objectId"], states, held=thing["objectId"])


def _in_order(forms: Sequence[tuple[str, ...]]) -> Callable[[Objects, np.random.Generator], Draft | None]:
    """A kind of several steps, each about another type of object, whose kinds are drawn from `forms`."""

    def draw(objects: Objects, rng: np.random.Generator) -> Draft | None:
        whole: Draft | None = None
        for kind in forms[int(rng.integers(len(forms)))]:
            part = _KINDS[kind](objects, rng, without=() if whole is None else {c.object_type for c in whole.goal})
            if part is None:
                return None
            whole = (
                part
                if whole is None
                else Draft(
                    join_steps(whole.instruction, part.instruction),
                    whole.goal + part.goal,
                    whole.target,
                    {**whole.states, **part.states},
                )
            )
        return whole

    return draw


_PAIRS = (
    ("open", "pick_up"),
    ("pick_up", "open"),
    ("toggle_on", "pick_up"),
    ("pick_up", "toggle_on"),
    ("close", "toggle_off"),
    ("open", "toggle_on"),
    ("toggle_off", "close"),
    ("pick_up", "close"),
)
_TRIPLES = (
    ("open", "toggle_on", "pick_up"),
    ("toggle_on", "pick_up", "open"),
    ("pick_up", "open", "toggle_on"),
    ("toggle_on", "pick_up", "close"),
    ("pick_up", "close", "toggle_off"),
)
"""Compositions whose goals can hold together at the end. Neighbours in a triple are pairs too."""

_KINDS: dict[str, Callable[..., Draft | None]] = {
    "pick_up": _pick_up,
    "open": _open,
    "close": _close,
    "toggle_on": _toggle_on,
    "toggle_off": _toggle_off,
    "put": _put,
    "break": _break,
    "slice": _slice,
    "two_step": _in_order(_PAIRS),
    "three_step": _in_order(_TRIPLES),
}
_ABLE = {
    "held": PICKUPABLE,
    "inside": PICKUPABLE,
    "open": OPENABLE,
    "closed": OPENABLE,
    "on": TOGGLEABLE,
    "off": TOGGLEABLE,
    "broken": BREAKABLE,
    "sliced": SLICEABLE,
}
"""What the object of a goal may be."""


# --- instructions of several steps -----------------------------------------------------------------------------------

_AND_THEN = " and then "


def join_steps(first: str, second: str) -> str:
    """One instruction of two steps, or of more where a part has several."""
    return f"{first}{_AND_THEN}{second}"


def steps_of(instruction: str) -> list[str]:
    """The one-step instructions that an instruction is made of, in order."""
    return instruction.split(_AND_THEN)


def verbs_of(instruction: str) -> str:
    """What is to be done, without the things: `open`, `put pick up`."""
    return " ".join(step.split(" the ", maxsplit=1)[0] for step in steps_of(instruction))


# --- given tasks -----------------------------------------------------------------------------------------------------

_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"pick up the (?P<a>.+)", "held"),
    (r"open the (?P<a>.+)", "open"),
    (r"close the (?P<a>.+)", "closed"),
    (r"turn on the (?P<a>.+)", "on"),
    (r"turn off the (?P<a>.+)", "off"),
    (r"put the (?P<a>.+?) (?:in|on) the (?P<b>.+)", "inside"),
    (r"break the (?P<a>.+)", "broken"),
    (r"slice the (?P<a>.+)", "sliced"),
    (r"grab the (?P<a>.+)", "held"),
    (r"switch on the (?P<a>.+)", "on"),
    (r"switch off the (?P<a>.+)", "off"),
    (r"sit on the (?P<b>.+)", "inside"),
)
"""What :data:`_KINDS` say, and VirtualHome's, read backwards."""
_KIND_OF_PREDICATE = {
    "held": "pick_up",
    "open": "open",
    "closed": "close",
    "on": "toggle_on",
    "off": "toggle_off",
    "inside": "put",
    "broken": "break",
    "sliced": "slice",
}


def kind_of_instruction(instruction: str) -> str:
    """The kind of task that an instruction of the generator's form is of; ``own`` if it cannot be told."""
    goal = goal_of_instruction(instruction)
    if not goal:
        return "own"
    if len(goal) > 1:
        return {2: "two_step", 3: "three_step"}.get(len(goal), "own")
    return "sit" if goal[0].object_type == CHARACTER else _KIND_OF_PREDICATE[goal[0].predicate]


def goal_of_instruction(instruction: str) -> tuple[Condition, ...] | None:
    """The goal that an instruction of the generator's form stands for; None if it cannot be told."""
    conditions = []
    for part in steps_of(instruction):
        for pattern, predicate in _PATTERNS:
            found = re.fullmatch(pattern, part)
            if found is None:
                continue
            names = {key: type_of(name) for key, name in found.groupdict().items()}
            if None in names.values():
                return None
            conditions.append(
                Condition.model_validate(
                    # Who sits is the actor, whom an instruction does not name.
                    {
                        "predicate": predicate,
                        "object_type": names.get("a", CHARACTER),
                        "receptacle_type": names.get("b"),
                    }
                )
            )
            break
        else:
            return None
    return tuple(conditions)


def instructions_text(path: Path) -> str:
    """A user's own list as it is. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"tasks.instructions: {path} cannot be read as text: {error}") from error


def read_instructions(path: Path) -> list[str]:
    """A user's own instructions, one a line; ``# ...`` is a comment. Raises ConfigError."""
    lines = [line.strip() for line in instructions_text(path).splitlines()]
    texts = [line for line in lines if line and not line.startswith("#")]
    if not texts:
        raise ConfigError(f"tasks.instructions: {path} holds no instruction; expected one a line.")
    return texts


def _own_task(text: str, world: World, scenes: Sequence[str], seed: int, number: int) -> Task:
    """A user's own instruction with a random start."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
    scene = scenes[int(rng.integers(len(scenes)))]
    setup = Setup(spawn_seed=int(rng.integers(2**31)), position=(0, 0.9, 0), rotation=0)
    world.reset(options={"task": _finish(scene, "own", text, (), setup)})
    reachable = world.candidates().get("reachable")
    if reachable is not None:  # a world that does not tell where one can stand decides by the spawn seed
        x, z = reachable[int(rng.integers(len(reachable)))]
        setup = setup.model_copy(
            update={"position": (float(x), 0.9, float(z)), "rotation": float(rng.integers(8) * 45)}
        )
    return _finish(scene, "own", text, goal_of_instruction(text) or (), setup)


def probe_set(world: str, probe: str) -> str:
    """Name of a world's frozen task set: probe ``a`` lies in the learning scenes, ``b`` in the transfer scenes."""
    return f"probe_{probe}" if world == "thor" else f"{world}_probe_{probe}"


THREE_STEPS = "three_steps"
"""Name of the frozen set of three-step tasks in the learning scenes. No practised task is about three things, so none
begins like one of them."""
THREE_STEPS_LIMIT = 20
"""Actions that one of them may take, as the planner proved."""


def has_probes(world: str) -> bool:
    """Whether frozen task sets of a world are shipped; of a user's own there are none."""
    return (FROZEN / f"{probe_set(world, 'a')}.jsonl").is_file()


def frozen_tasks(name: str) -> list[Task]:
    """A shipped task set, as :func:`probe_set` names it. Raises ConfigError."""
    path = FROZEN / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FROZEN.glob("*.jsonl")))
        raise ConfigError(f"There is no frozen task set `{name}`; there are: {known}.")
    return [Task.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


TRAJECTORIES_A_TASK = 2
"""Trajectories of the critic's probe for each of its tasks: the planner solves them all, so that half are successes."""


def probe_size(name: str) -> int:
    """Tasks of a frozen set, of all kinds. Raises ConfigError."""
    return len(frozen_tasks(name))


def probe_tasks(name: str, count: int, kinds: Collection[str]) -> list[Task]:
    """The first `count` tasks of a frozen set that are of the kinds, or all of them if there are fewer.

    Kinds take turns in a set, so that any beginning is a mixture.

    Raises:
        ConfigError: there is no such set, it has fewer tasks of all kinds than `count`, or none of these kinds.
    """
    shipped = frozen_tasks(name)
    if count > len(shipped):
        raise ConfigError(f"the frozen set {name} has {len(shipped)} tasks, {count} were asked for")
    chosen = [task for task in shipped if task.kind in kinds][:count]
    if not chosen:
        raise ConfigError(
            f"the frozen set {name} has no task of the kinds {', '.join(kinds)}; set the sizes of that probe in evaluation to 0"
        )
    return chosen
