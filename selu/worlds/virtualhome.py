"""VirtualHome as a world: its own ``UnityCommunication`` before the embedded player or the real simulator.

The actor writes VirtualHome's program actions as text: ``Walk(Fridge)`` is the program line ``[walk] <fridge> (12)`` for
the nearest fridge. What a program came to is told to the actor by nothing but the next frame; the scene graph is the
oracle's.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selu.config import Split, WorldSettings, scenes_of_split
from selu.errors import ConfigError, WorldError
from selu.player.virtualhome_homes import type_of_class
from selu.player.virtualhome_wheel import wheel_module
from selu.records import Condition, Task
from selu.worlds.actions import DONE, Action, parse_action
from selu.worlds.base import PREDICATES, Frame, OracleState, World, holds, until_it_lasts
from selu.worlds.tasks import Draft, Objects, changing
from selu.worlds.vocabulary import CHARACTER, NAMES, OTHER_NAMES, spoken_name

__all__ = ["VirtualHomeWorld", "in_process", "start_virtualhome"]


Post = Callable[[dict[str, Any]], dict[str, Any]]

TURN = 30
"""Degrees of VirtualHome's TurnLeft and TurnRight."""
EYE = [0.0, 1.6, 0.15]
"""Where the first-person camera is on a character, in metres (right, up, ahead)."""
_GRID = 0.25
_FREE = 0.45
"""Metres that a character keeps from a box when it starts."""
_GREY = 2
"""Most that the pixels of a picture may differ for it to be one grey face: a healthy wall has shades."""
_POLL = 0.25
"""Seconds between two questions whether a simulator is up."""
_TRIES = 3
"""Times in a row that the planner tries an action: of three cabinets the third may be the one that is meant."""

OPENABLE = ("Fridge", "Microwave", "Cabinet", "Drawer", "Toilet", "Stove", "Dishwasher", "WashingMachine")
SWITCHABLE = ("Television", "FloorLamp", "DeskLamp", "CoffeeMachine", "Radio", "Computer")
SEATS = ("Sofa", "ArmChair", "Chair", "Bench", "Bed", "Toilet")
_PROGRAMS = {
    "Walk": "walk", "Open": "open", "Close": "close", "Grab": "grab", "SwitchOn": "switchon", "SwitchOff": "switchoff",
    "Sit": "sit", "PutBack": "putback", "PutIn": "putin", "StandUp": "standup", "RotateLeft": "turnleft",
    "RotateRight": "turnright",
}  # fmt: skip
_CHANGES = {
    "Open": ("CAN_OPEN", "CLOSED"), "Close": ("CAN_OPEN", "OPEN"), "SwitchOn": ("HAS_SWITCH", "OFF"),
    "SwitchOff": ("HAS_SWITCH", "ON"), "Grab": ("GRABBABLE", None), "Sit": ("SITTABLE", None),
    "PutBack": ("SURFACES", None), "PutIn": ("CONTAINERS", "OPEN"),
}  # fmt: skip
"""Verb -> the property that an object needs, and the state that it must be in, for the verb to change it."""
_VERBS = {"held": "Grab", "open": "Open", "closed": "Close", "on": "SwitchOn", "off": "SwitchOff", "inside": "Sit"}
_STATES = {"isOpen": ("OPEN", "CLOSED"), "isToggled": ("ON", "OFF")}
"""A task's setup, in AI2-THOR's words -> VirtualHome's states for true and false."""


# --- the client -------------------------------------------------------------------------------------------------------


_Player = subprocess.Popen[str]
_Started = tuple[Any, _Player]
"""VirtualHome's client, and the player that was started for it."""


class _Client:
    """VirtualHome's own client, each of its errors a WorldError in one sentence.

    A player that was started for it, which `start` does, is ended when it is lost, and started again by :meth:`revive`.
    """

    def __init__(
        self, communication: Any, player: _Player | None = None, start: Callable[[], _Started] | None = None
    ) -> None:
        self._communication, self._player, self._start = communication, player, start

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._communication, name)

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return method(*arguments, **named)
            except Exception as error:
                if self._player is not None:
                    # It may live on and not answer. Only once it has ended can `revive` tell that it has.
                    self._player.kill()
                    self._player.wait()
                # Its own exceptions have a message and no text.
                text = vars(error).get("message") or f"{type(error).__name__}: {error}"
                raise WorldError(
                    f"The VirtualHome simulator was lost while it was asked to {name} ({text})."
                ) from error

        return call

    def revive(self) -> None:
        """Start the player anew if it was lost. Somebody else's simulator is let be."""
        if self._player is not None and self._start is not None and self._player.poll() is not None:
            stop(self._player)
            self._communication, self._player = self._start()

    def close(self) -> None:
        if self._player is not None:
            stop(self._player)
            self._player = None


def start_virtualhome(settings: WorldSettings) -> VirtualHomeWorld:
    """The simulator at ``settings.server``, or an embedded player that is started for it.

    Raises:
        ConfigError: VirtualHome's wheel is not installed.
        WorldError: nobody answers within ``settings.start_timeout`` seconds.
    """
    communication = wheel_module("unity_simulator.comm_unity").UnityCommunication

    def start() -> _Started:
        player, port = _start_player(settings)
        return communication(url="127.0.0.1", port=port, timeout_wait=settings.step_timeout), player

    if settings.server is not None:
        host, _, port = settings.server.rpartition(":")
        client = _Client(communication(url=host, port=port, timeout_wait=settings.step_timeout))
        where, player = settings.server, None
    else:
        os.environ.setdefault("NO_PROXY", "127.0.0.1,localhost")  # its client asks a proxy even for loopback
        told, player = until_it_lasts(start, settings.restarts)
        client, where = _Client(told, player, start), "127.0.0.1"
    greeting = _Client(client._communication)  # one that does not end a player which is slow to start
    deadline = time.monotonic() + settings.start_timeout
    while True:
        try:
            # Its own check_connection waits for ever.
            greeting.post_command({"id": "0", "action": "idle"})
            world = VirtualHomeWorld(client, settings)
            if settings.server is not None:
                world.metadata = {**world.metadata, "simulator": _description(settings.server)}
            return world
        except WorldError as error:
            dead = player is not None and player.poll() is not None
            if dead or time.monotonic() > deadline:
                client.close()
                raise WorldError(
                    f"No VirtualHome simulator answers at {where} after {settings.start_timeout:g} s ({error}). "
                    "Start one, or leave world.server unset for the embedded player."
                ) from error
            time.sleep(_POLL)


def _description(server: str) -> dict[str, str]:
    """What can be told of somebody else's simulator, to be stored with its episodes: its protocol has no word for more."""
    return {"client": f"virtualhome {version('virtualhome')}", "server": server}


def _start_player(settings: WorldSettings) -> tuple[subprocess.Popen[str], str]:
    player = subprocess.Popen(
        [sys.executable, "-m", "selu.player.virtualhome", "--port", "0", "--with-parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert player.stdout is not None
    ready, _, _ = select.select([player.stdout], [], [], settings.start_timeout)
    port = player.stdout.readline().strip() if ready else ""
    if not port:
        stop(player)
        raise WorldError(
            f"The embedded VirtualHome player did not start within {settings.start_timeout:g} s; what it said stands above."
        )
    return player, port


def stop(player: subprocess.Popen[str]) -> None:
    """End a player that this process started."""
    player.kill()
    player.wait()
    for pipe in (player.stdin, player.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def in_process(settings: WorldSettings) -> VirtualHomeWorld:
    """The embedded player in this process, driven by the same client without a socket. Raises ConfigError."""
    from selu.player.virtualhome import VirtualHomePlayer

    communication = wheel_module("unity_simulator.comm_unity").UnityCommunication()
    player = VirtualHomePlayer()
    communication.post_command = lambda request, repeat=False: player.answer(request)
    return VirtualHomeWorld(_Client(communication), settings)


# --- the world --------------------------------------------------------------------------------------------------------


class VirtualHomeWorld(World):
    """Household tasks in VirtualHome; a scene is ``Home<number of its environment>``."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - declared so by Gymnasium
    skill_set = "virtualhome"

    def __init__(self, client: Any, settings: WorldSettings) -> None:
        self.client, self.settings = client, settings
        self.observation_space = gymnasium.spaces.Box(0, 255, (settings.height, settings.width, 3), np.uint8)
        self.action_space = gymnasium.spaces.Text(max_length=64, min_length=0)
        self.render_mode = "rgb_array"
        self.kinds = _KINDS
        self._task: Task | None = None

    def scenes(self, split: Split) -> tuple[str, ...]:
        """Homes of a split, by the numbers that iTHOR's kitchens have in it."""
        numbers = (int(scene.removeprefix("FloorPlan")) for scene in scenes_of_split(split))
        return tuple(f"Home{number}" for number in numbers if number < 200)

    # --- Gymnasium -----------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        super().reset(seed=seed)
        if options is None or not isinstance(options.get("task"), Task):
            raise ConfigError("reset needs options={'task': Task}: a task says in which scene and how to start.")
        self._task = task = options["task"]
        if isinstance(self.client, _Client):
            self.client.revive()
        number = task.scene.removeprefix("Home")
        if not number.isdecimal():
            raise ConfigError(f"VirtualHome has no scene {task.scene}; its scenes are Home0, Home1, ...")
        self._steps, self._success, self._message = 0, True, ""
        self._demand(self.client.reset(int(number)), f"load home {number}")
        self._demand(
            self.client.add_character_camera(EYE, [0, 0, 0], self.settings.field_of_view, "first_person")[0],
            "add a camera",
        )
        self._graph = self._environment_graph()
        self._set_states(task.setup.states)
        expanded, why = self.client.expand_scene(self._graph, randomize=True, random_seed=task.setup.spawn_seed % 2**31)
        self._demand(expanded, f"place the small things: {why}")
        x, _, z = task.setup.position
        self._demand(self.client.add_character(position=self._somewhere_free(x, z)), f"put a character at {x}, {z}")
        self._demand(self.client.camera_count()[0], "count its cameras")
        self._camera = int(self.client.camera_count()[1]) - 1
        for _ in range(round(task.setup.rotation / TURN) % (360 // TURN)):
            self._demand(self._run("<char0> [turnright]"), "turn the character")
        self._look()
        return self._frame, {}

    def _demand(self, success: object, what: str) -> None:
        if not success:
            raise WorldError(f"VirtualHome refused to {what}.")

    def _set_states(self, wanted: Mapping[str, Mapping[str, bool]]) -> None:
        by_id = {str(node["id"]): node for node in self._graph["nodes"]}
        for object_id, states in wanted.items():
            for key, value in states.items():
                if object_id in by_id and key in _STATES:
                    true, false = _STATES[key]
                    node = by_id[object_id]
                    node["states"] = [s for s in node["states"] if s not in (true, false)] + [true if value else false]

    def _somewhere_free(self, x: float, z: float) -> list[float]:
        reachable = _reachable(self._graph)
        nearest = reachable[np.linalg.norm(reachable - np.array([x, z]), axis=1).argmin()]
        return [float(nearest[0]), 0.0, float(nearest[1])]

    def step(self, action: str) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        self._success, self._message = True, ""
        parsed = parse_action(action, self.skill_set)
        if parsed is None:
            self._success, self._message = False, "the text is not an action"
        elif parsed.verb != DONE:
            line = self._program(parsed)
            self._success = line is not None and self._run(line)
            if self._success:
                self._look()
        terminated = parsed is not None and parsed.verb == DONE
        truncated = not terminated and self._steps >= self.settings.max_steps
        return self._frame, 0.0, terminated, truncated, {}

    def render(self) -> Any:
        return self._frame

    def close(self) -> None:
        self.client.close()

    @property
    def task(self) -> Task:
        assert self._task is not None, "reset comes first"
        return self._task

    # --- programs ------------------------------------------------------------------------------------------------

    def _program(self, action: Action) -> str | None:
        """The program line of an action, about the nearest object that it can be done to; None without any."""
        line = f"<char0> [{_PROGRAMS[action.verb]}]"
        if action.object_type is None:
            return line
        target = self._target(action.verb, action.object_type)
        if target is None:
            self._message = f"there is no {action.object_type}"
            return None
        if action.verb in ("PutBack", "PutIn"):
            if not self._held:
                self._message = "nothing is held"
                return None
            line += f" <{self._held[-1]['class_name']}> ({self._held[-1]['id']})"
        return f"{line} <{target['class_name']}> ({target['id']})"

    def _target(self, verb: str, object_type: str) -> Mapping[str, Any] | None:
        found = [n for n in self._objects if type_of_class(n["class_name"]) == object_type and n not in self._held]
        return min(found, key=lambda n: (*self._out_of_reach(verb, n), self._distance(n), n["id"]), default=None)

    def _out_of_reach(self, verb: str, node: Mapping[str, Any]) -> tuple[bool, bool]:
        if verb == "Walk":  # from where one is to the next of its type, so that each can be come to
            return node["id"] in self._close, False
        return node["id"] not in self._close, not _applies(verb, node)

    def _distance(self, node: Mapping[str, Any]) -> float:
        """Metres to the middle of a thing: of what is in other rooms farther than of what is here."""
        here, there = (n["bounding_box"]["center"] for n in (self._character, node))
        return round(math.dist(here, there), 3)

    def _run(self, line: str) -> bool:
        success, message = self.client.render_script(
            [line], recording=False, skip_animation=True, image_synthesis=[], find_solution=False
        )
        if not success:
            self._message = message if isinstance(message, str) else json.dumps(message)
        return bool(success)

    # --- what comes back -----------------------------------------------------------------------------------------

    def _environment_graph(self) -> dict[str, Any]:
        success, graph = self.client.environment_graph()
        self._demand(success, "tell its graph")
        if not isinstance(graph, dict) or not {"nodes", "edges"} <= set(graph):
            raise WorldError("VirtualHome's graph has no nodes and edges.")
        return graph

    def _look(self) -> None:
        """Take over the graph and the picture of the present moment."""
        self._graph = self._environment_graph()
        by_id = {node["id"]: node for node in self._graph["nodes"]}
        characters = [node for node in self._graph["nodes"] if node["class_name"] == "character"]
        if not characters:
            raise WorldError("VirtualHome's graph has no character.")
        self._character = characters[0]
        mine = [(e["relation_type"], e["to_id"]) for e in self._graph["edges"] if e["from_id"] == self._character["id"]]
        self._objects = [
            n for n in self._graph["nodes"] if n["category"] not in ("Rooms", "Characters") and n.get("bounding_box")
        ]
        self._held = [by_id[node] for relation, node in sorted(mine) if relation.startswith("HOLDS")]
        self._close = {node for relation, node in mine if relation == "CLOSE"}
        self._seats = [by_id[node] for relation, node in mine if relation == "ON"] if self._is_seated else []
        self._inside: dict[int, Mapping[str, Any]] = {
            e["from_id"]: by_id[e["to_id"]]
            for e in self._graph["edges"]
            if e["relation_type"] == "INSIDE" and by_id[e["to_id"]]["category"] != "Rooms"
        }
        self._frame = self._picture()

    @property
    def _is_seated(self) -> bool:
        return "SITTING" in self._character["states"]

    def _picture(self) -> Frame:
        settings = self.settings
        # Its own camera_image needs names that Python and numpy have dropped.
        wanted = {"mode": "normal", "image_width": settings.width, "image_height": settings.height}
        reply = self.client.post_command(
            {
                "id": str(time.time()),
                "action": "camera_image",
                "intParams": [self._camera],
                "stringParams": [json.dumps(wanted)],
            }
        )
        self._demand(reply.get("success") and reply.get("message_list"), "draw a picture")
        try:
            with Image.open(io.BytesIO(base64.b64decode(reply["message_list"][0]))) as opened:
                frame: NDArray[np.uint8] = np.array(opened.convert("RGB"), np.uint8)
        except (OSError, ValueError) as error:
            raise WorldError(f"VirtualHome's picture cannot be read: {error}.") from error
        if frame.shape != (settings.height, settings.width, 3):
            raise WorldError(
                f"VirtualHome's picture must be {settings.width}x{settings.height} pixels, got "
                f"{frame.shape[1]}x{frame.shape[0]}."
            )
        if np.ptp(frame.reshape(-1, 3), axis=0).max() <= _GREY:
            raise WorldError(
                "VirtualHome's picture is of one colour although it reported success: its camera draws nothing (seen "
                "where it runs without a GPU or display)."
            )
        return frame

    # --- truth ---------------------------------------------------------------------------------------------------

    def oracle(self) -> OracleState:
        return OracleState(self._success, self._message, self._facts())

    def _facts(self) -> dict[str, Any]:
        def types(able: str, state: str, value: bool) -> list[str]:
            having = {type_of_class(n["class_name"]) for n in self._objects if able in n["properties"]}
            true = {type_of_class(n["class_name"]) for n in self._objects if state in n["states"]} & having
            return sorted(true if value else having - true)

        by_id = {node["id"]: node for node in self._objects}
        held = {node["id"] for node in self._held}
        inside = {
            (type_of_class(by_id[e["from_id"]]["class_name"]), type_of_class(by_id[e["to_id"]]["class_name"]))
            for e in self._graph["edges"]
            if e["relation_type"] in ("ON", "INSIDE") and e["from_id"] in by_id.keys() - held and e["to_id"] in by_id
        } | {(CHARACTER, type_of_class(seat["class_name"])) for seat in self._seats}
        return {name: [] for name in PREDICATES} | {
            "held": sorted({type_of_class(node["class_name"]) for node in self._held}),
            "open": types("CAN_OPEN", "OPEN", True),
            "closed": types("CAN_OPEN", "OPEN", False),
            "on": types("HAS_SWITCH", "ON", True),
            "off": types("HAS_SWITCH", "ON", False),
            "inside": [list(pair) for pair in sorted(inside)],
            "position": [round(float(part), 3) for part in self._character["bounding_box"]["center"]],
            "seated": self._is_seated,
        }

    def candidates(self) -> Mapping[str, Any]:
        """The scene in AI2-THOR's words, as far as tasks are drawn of it, and where a character can stand."""
        objects = []
        for node in self._objects:
            x, y, z = node["bounding_box"]["center"]
            objects.append(
                {
                    "objectId": str(node["id"]),
                    "objectType": type_of_class(node["class_name"]),
                    "position": {"x": x, "y": y, "z": z},
                    "distance": self._distance(node),
                    "pickupable": "GRABBABLE" in node["properties"],
                    "openable": "CAN_OPEN" in node["properties"],
                    "toggleable": "HAS_SWITCH" in node["properties"],
                    "sittable": "SITTABLE" in node["properties"],
                    "isOpen": "OPEN" in node["states"],
                    "isToggled": "ON" in node["states"],
                }
            )
        return {"metadata": {"objects": objects}, "reachable": _reachable(self._graph)}

    # --- the scripted planner (selu.worlds.planner asks for it) --------------------------------------------------

    def next_action(self, before: Sequence[str], goal: tuple[Condition, ...]) -> str:
        """What the planner does next towards a goal, having done ``before``; Done where there is nothing left to do."""
        facts = self._facts()
        for condition in goal:
            if not holds((condition,), facts):
                text = self._towards(condition)
                return DONE if list(before[-_TRIES:]) == [text] * _TRIES else text  # it is of no use
        return DONE

    def _towards(self, condition: Condition) -> str:
        verb, name = _VERBS[condition.predicate], _about(condition)
        if self._is_seated:
            return "StandUp"
        able = [
            n
            for n in self._objects
            if type_of_class(n["class_name"]) == name and _applies(verb, n) and n not in self._held
        ]
        if not able:
            return DONE
        target = min(able, key=lambda n: (n["id"] not in self._close, self._distance(n), n["id"]))
        around = self._inside.get(target["id"])
        if around is not None and "CLOSED" in around["states"]:
            target, verb = around, "Open"
        name = type_of_class(target["class_name"])
        return f"{verb}({name})" if target["id"] in self._close else f"Walk({name})"

    def would_finish(self, action: str) -> bool:
        """Whether an action is the one that fulfils the last open condition of the running task's goal."""
        facts = self._facts()
        left = [condition for condition in self.task.goal if not holds((condition,), facts)]
        return len(left) == 1 and action == f"{_VERBS[left[0].predicate]}({_about(left[0])})"

    def sibling_goal(self, before: Sequence[str]) -> tuple[Condition, ...] | None:
        """The running task's goal about another thing in its last condition: the nearest that it can be done to, or what
        it was done to ``before``."""
        *first, last = self.task.goal
        verb, about = _VERBS[last.predicate], _about(last)
        field = "receptacle_type" if last.predicate == "inside" else "object_type"
        done = [text.removeprefix(f"{verb}(").removesuffix(")") for text in before if text.startswith(f"{verb}(")]
        facts = self._facts()
        near = sorted(
            (n for n in self._objects if _CHANGES[verb][0] in n["properties"]),
            key=lambda n: (self._distance(n), n["id"]),
        )
        others = [type_of_class(n["class_name"]) for n in near]
        for name in [*done, *others]:
            sibling = last.model_copy(update={field: name})
            named = name != about and name in NAMES | OTHER_NAMES
            if named and (name in done or not holds((sibling,), facts)):
                return (*first, sibling)
        return None


def _about(condition: Condition) -> str:
    """The type of the thing that something is done to; of sitting, what is sat on."""
    return condition.receptacle_type or condition.object_type


def _applies(verb: str, node: Mapping[str, Any]) -> bool:
    able, state = _CHANGES[verb]
    return able in node["properties"] and (state is None or state in node["states"])


def _reachable(graph: Mapping[str, Any]) -> NDArray[np.float64]:
    """Where a character can stand, ``(n, 2)`` metres (x, z): a grid over the rooms, away from what stands on the floor.

    The protocol does not tell, so it is read off the boxes of the graph.
    """
    boxes = [
        (np.array(n["bounding_box"]["center"]), np.array(n["bounding_box"]["size"]))
        for n in graph["nodes"]
        if n["category"] not in ("Rooms", "Characters") and n.get("bounding_box")
    ]
    points = np.concatenate([_grid(n["bounding_box"]) for n in graph["nodes"] if n["category"] == "Rooms"])
    free = np.ones(len(points), bool)
    for centre, size in boxes:
        away = np.maximum(np.abs(points - centre[[0, 2]]) - size[[0, 2]] / 2, 0)
        free &= np.linalg.norm(away, axis=1) >= _FREE
    if not free.any():
        raise WorldError("VirtualHome's graph leaves no room to stand in.")
    return points[free]


def _grid(box: Mapping[str, Any]) -> NDArray[np.float64]:
    axes = [
        np.arange(box["center"][k] - box["size"][k] / 2 + _FREE, box["center"][k] + box["size"][k] / 2 - _FREE, _GRID)
        for k in (0, 2)
    ]
    x, z = np.meshgrid(*axes)
    return np.round(np.stack([x.ravel(), z.ravel()], 1), 3)


# --- tasks ------------------------------------------------------------------------------------------------------------


def _draw_grab(objects: Objects, rng: np.random.Generator) -> Draft | None:
    small = sorted({o["objectType"] for o in objects if o["pickupable"] and o["objectType"] in NAMES})
    if not small:
        return None
    name = small[int(rng.integers(len(small)))]
    target = next(o for o in objects if o["objectType"] == name)
    goal = (Condition(predicate="held", object_type=name),)
    return Draft(f"grab the {spoken_name(name)}", goal, target["objectId"], {})


def _draw_sit(objects: Objects, rng: np.random.Generator) -> Draft | None:
    seats = sorted({o["objectType"] for o in objects if o["sittable"] and o["objectType"] in SEATS})
    if not seats:
        return None
    name = seats[int(rng.integers(len(seats)))]
    target = next(o for o in objects if o["objectType"] == name)
    goal = (Condition(predicate="inside", object_type=CHARACTER, receptacle_type=name),)
    return Draft(f"sit on the {spoken_name(name)}", goal, target["objectId"], {})


_KINDS: dict[str, Callable[[Objects, np.random.Generator], Draft | None]] = {
    "open": changing(OPENABLE, "openable", "isOpen", True, "open", "open the {}"),
    "close": changing(OPENABLE, "openable", "isOpen", False, "closed", "close the {}"),
    "toggle_on": changing(SWITCHABLE, "toggleable", "isToggled", True, "on", "switch on the {}"),
    "toggle_off": changing(SWITCHABLE, "toggleable", "isToggled", False, "off", "switch off the {}"),
    "pick_up": _draw_grab,
    "sit": _draw_sit,
}
