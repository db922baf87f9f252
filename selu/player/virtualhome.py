"""The embedded VirtualHome player: its own ``evolving_graph`` engine and our pictures behind its own HTTP protocol.

    python -m selu.player.virtualhome --port 8080

serves what ``UnityCommunication`` of ``virtualhome`` 2.3.0 posts, on loopback. Programs are executed by the engine that
ships with VirtualHome; where the character stands and what it sees is ours: homes drawn by a seed
(:mod:`selu.player.virtualhome_homes`) with the proxy geometry of the household player. Call results what they are:
*VirtualHome's engine on seeded homes*, never "VirtualHome results".
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from selu.player.layouts import AGENT_HEIGHT
from selu.player.renderer import Mesh, Pose, Renderer, build_mesh, room_mesh
from selu.player.shapes import Appearance, Vector, shape_of
from selu.player.virtualhome_homes import KINDS, Graph, home_graph, place_small_things, type_of_class
from selu.player.virtualhome_wheel import wheel_module

SITTING_HEIGHT = 0.55
"""Height of a seated agent's centre in metres: the eye is 0.35 m lower than when it stands."""
GAP = 0.8
"""Metres between the character and the box that it walked up to."""
TURN = 30.0
"""Degrees of one TurnLeft or TurnRight, as in VirtualHome."""
_SLOT = 0.42
"""Metres that a thing on a surface takes."""
_LINE = re.compile(r"<char0>\s*(\[\s*(\w+)\s*\].*)")
_MAX_PITCH = 40.0

Answer = dict[str, Any]


class _Refused(Exception):
    """A request that cannot be fulfilled; nothing has changed."""


class VirtualHomePlayer:
    """One home with at most one character. :meth:`answer` takes a request of VirtualHome's protocol."""

    def __init__(self) -> None:
        self._environment, self._execution, self._scripts, self._common = (
            wheel_module(f"evolving_graph.{name}") for name in ("environment", "execution", "scripts", "common")
        )
        self._renderer = Renderer(96, 96, 75.0)
        self._field_of_view = 60.0
        self._load(home_graph(0))

    def answer(self, request: dict[str, Any]) -> Answer:
        """What VirtualHome would reply: ``{id, success, message, value, message_list}``."""
        done: Answer = {"id": request.get("id", ""), "success": True, "message": "", "value": 0, "message_list": []}
        handler = _REQUESTS.get(str(request.get("action")))
        try:
            if handler is None:
                raise _Refused(f"unknown action: {request.get('action')}")
            return done | (handler(self, request.get("intParams") or [], request.get("stringParams") or []) or {})
        except _Refused as refusal:
            return done | {"success": False, "message": str(refusal)}

    # --- scene ---------------------------------------------------------------------------------------------------

    def _load(self, graph: Graph) -> None:
        self._common.TimeMeasurement.reset_all()  # the engine never forgets what it measured
        self._state = self._new_state(graph)
        self._character: int | None = None
        self._x, self._z, self._yaw, self._pitch = 0.0, 0.0, 0.0, 0.0
        self._cameras = 0
        self._slots: dict[int, tuple[int, int]] = {}
        self._meshes: dict[tuple[Any, ...], Mesh] = {}
        self._read()

    def _new_state(self, graph: Graph) -> Any:
        return self._environment.EnvironmentState(
            self._environment.EnvironmentGraph(graph), {}, instance_selection=True
        )

    def _read(self) -> None:
        """Take the engine's state over: what is where, and who is held."""
        graph = self._state.to_dict()
        self._nodes: dict[int, dict[str, Any]] = {node["id"]: node for node in graph["nodes"]}
        # The engine keeps both in sets.
        for node in self._nodes.values():
            node["states"], node["properties"] = sorted(node["states"]), sorted(node["properties"])
        self._edges = sorted(graph["edges"], key=lambda e: (e["from_id"], e["relation_type"], e["to_id"]))
        self._rooms = {i for i, node in self._nodes.items() if node["category"] == "Rooms"}
        self._room_of: dict[int, int] = {}
        self._parent: dict[int, tuple[int, str]] = {}
        self._held: list[int] = []
        for edge in self._edges:
            start, relation, end = edge["from_id"], edge["relation_type"], edge["to_id"]
            if relation.startswith("HOLDS"):
                self._held.append(end)
            elif relation == "INSIDE" and end in self._rooms:
                self._room_of[start] = end
            elif relation in ("ON", "INSIDE") and start != self._character:
                self._parent[start] = (end, relation)
        for child in sorted(self._parent):
            parent = self._parent[child][0]
            if self._slots.get(child, (None, 0))[0] != parent:
                taken = {slot for other, (p, slot) in self._slots.items() if p == parent and other in self._parent}
                self._slots[child] = parent, next(k for k in range(len(taken) + 1) if k not in taken)
        for gone in [child for child in self._slots if child not in self._parent]:
            del self._slots[gone]
        for child in self._parent:
            if self._nodes[child]["bounding_box"] is not None:
                self._nodes[child]["bounding_box"] = {"center": list(self._centre(child)), "size": self._size(child)}
        if self._character is not None:
            self._nodes[self._character]["bounding_box"] = {
                "center": [self._x, AGENT_HEIGHT, self._z],
                "size": [0.4, 1.8, 0.4],
            }

    def _size(self, node: int) -> list[float]:
        """Size (x, y, z) in metres; a thing turns with what it is on."""
        kind = KINDS.get(type_of_class(self._nodes[node]["class_name"]))
        if node not in self._parent or kind is None:
            return [float(s) for s in self._nodes[node]["bounding_box"]["size"]]
        along, up, away = kind.size
        return [along, up, away] if self._front(node)[0] == 2 else [away, up, along]

    def _front(self, node: int) -> tuple[int, int]:
        """The side (axis, sign) that faces the room: away from the nearest wall; a thing faces as what it is on."""
        if node in self._parent:
            return self._front(self._parent[node][0])
        room = self._nodes[self._room_of[node]]["bounding_box"]
        centre, size = self._nodes[node]["bounding_box"]["center"], self._size(node)
        gaps = {
            (axis, sign): abs(
                centre[axis] - sign * size[axis] / 2 - room["center"][axis] + sign * room["size"][axis] / 2
            )
            for axis in (0, 2)
            for sign in (1, -1)
        }
        return min(gaps, key=lambda side: (round(gaps[side], 3), side))

    def _centre(self, node: int) -> Vector:
        """Where a node's box has its middle; things stand in a row on a surface, or on a middle shelf inside."""
        if node not in self._parent:
            x, y, z = self._nodes[node]["bounding_box"]["center"]
            return float(x), float(y), float(z)
        parent, relation = self._parent[node]
        axis, sign = self._front(parent)
        centre, size = list(self._centre(parent)), self._size(parent)
        own, side = self._size(node), 2 - axis
        height = own[1]
        places = max(1, int(size[side] / _SLOT))
        slot = self._slots[node][1] % places
        rim = max(0.0, (size[side] - own[side]) / 2)
        centre[side] += min(rim, max(-rim, size[side] * ((slot + 0.5) / places - 0.5)))
        if relation == "ON":
            centre[1] += size[1] / 2 + height / 2
        else:
            centre[axis] += sign * size[axis] * 0.25
            centre[1] += height / 2 - size[1] * 0.16
        return centre[0], centre[1], centre[2]

    def _is_hidden(self, node: int) -> bool:
        while node in self._parent:
            node, relation = self._parent[node]
            if relation == "INSIDE" and "CLOSED" in self._nodes[node]["states"]:
                return True
        return False

    def _home_room(self, node: int) -> int:
        while node in self._parent:
            node = self._parent[node][0]
        return self._room_of[node]

    # --- picture -------------------------------------------------------------------------------------------------

    def _mesh(self, node: int) -> Mesh:
        axis, sign = self._front(node)
        size = self._size(node)
        key = node, self._centre(node), self._look(node)
        if key not in self._meshes:
            kind = type_of_class(self._nodes[node]["class_name"])
            parts = shape_of(kind, (size[axis], size[1], size[2 - axis]), self._look(node))
            self._meshes[key] = build_mesh(parts, self._centre(node), axis, sign)
        return self._meshes[key]

    def _look(self, node: int) -> Appearance:
        states = self._nodes[node]["states"]
        return Appearance(is_open="OPEN" in states, is_on="ON" in states)

    def picture(self, width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """What the character sees now, ``(H, W, 3) uint8``."""
        if self._character is None:
            raise _Refused("there is no character, whose camera this is")
        if (self._renderer.width, self._renderer.height, self._renderer.fov) != (width, height, self._field_of_view):
            self._renderer.configure(width, height, self._field_of_view)
        room = self._room_of[self._character]
        box = self._nodes[room]["bounding_box"]
        centre, size = np.array(box["center"]), np.array(box["size"])
        low, high = (tuple((centre + part * size / 2).tolist()) for part in (-1, 1))
        floor = build_mesh(
            shape_of("Floor", (float(size[0]), 0.02, float(size[2]))), (float(centre[0]), -0.01, float(centre[2])), 0, 1
        )
        meshes = [(-1, room_mesh(low, high)), (room, floor)]
        for node, data in self._nodes.items():
            if node in self._rooms or node == self._character or node in self._held or data["bounding_box"] is None:
                continue
            if self._home_room(node) == room and not self._is_hidden(node):
                meshes.append((node, self._mesh(node)))
        self._renderer.load(meshes, room)
        seated = "SITTING" in self._nodes[self._character]["states"]
        pose = Pose(self._x, SITTING_HEIGHT if seated else AGENT_HEIGHT, self._z, self._yaw, self._pitch)
        held = None
        if self._held:
            node = self._held[-1]
            held = node, type_of_class(self._nodes[node]["class_name"]), self._look(node)
        return self._renderer.render(pose, held).rgb

    # --- requests ------------------------------------------------------------------------------------------------

    def _set_environment(self, numbers: list[int], texts: list[str]) -> None:
        self._load(home_graph(int(numbers[0]) if numbers else 0))

    def _expand(self, numbers: list[int], texts: list[str]) -> None:
        config, graph = json.loads(texts[0]), json.loads(texts[1])
        if self._character is not None:
            raise _Refused("the scene is expanded before a character is added")
        if config.get("randomize"):
            graph = place_small_things(graph, max(0, int(config.get("random_seed", 0))))
        cameras = self._cameras
        self._load(graph)
        self._cameras = cameras

    def _add_camera(self, numbers: list[int], texts: list[str]) -> None:
        self._field_of_view = float(json.loads(texts[0])["field_view"])
        self._cameras = 1

    def _add_character(self, numbers: list[int], texts: list[str]) -> None:
        if self._character is not None:
            raise _Refused("there is a character already; this player has room for one")
        config = json.loads(texts[0])
        position = config["character_position"]
        x, z = float(position["x"]), float(position["z"])
        if config.get("mode") != "fix_position":
            wanted = config.get("initial_room")
            room = next((i for i in sorted(self._rooms) if self._nodes[i]["class_name"] == wanted), min(self._rooms))
            x, _, z = self._nodes[room]["bounding_box"]["center"]
        rooms = [i for i in sorted(self._rooms) if self._is_within(i, x, z)]
        if not rooms:
            raise _Refused(f"({x:.2f}, {z:.2f}) lies in no room")
        number = max(self._nodes) + 1
        graph = {"nodes": list(self._nodes.values()), "edges": self._edges}
        graph["nodes"].append(
            {
                "id": number, "class_name": "character", "category": "Characters", "properties": [], "states": [],
                "prefab_name": "character", "bounding_box": {"center": [x, 0.9, z], "size": [0.4, 1.8, 0.4]},
            }
        )  # fmt: skip
        graph["edges"].append({"from_id": number, "relation_type": "INSIDE", "to_id": rooms[0]})
        cameras, slots = self._cameras, self._slots
        self._load(graph)
        self._character, self._cameras, self._slots = number, cameras, slots
        self._x, self._z = x, z
        self._read()

    def _is_within(self, room: int, x: float, z: float) -> bool:
        box = self._nodes[room]["bounding_box"]
        return all(abs(at - box["center"][k]) <= box["size"][k] / 2 for k, at in ((0, x), (2, z)))

    def _graph(self, numbers: list[int], texts: list[str]) -> Answer:
        return {"message": json.dumps({"nodes": list(self._nodes.values()), "edges": self._edges})}

    def _images(self, numbers: list[int], texts: list[str]) -> Answer:
        config = json.loads(texts[0])
        if any(number != self._cameras - 1 for number in numbers):
            raise _Refused(f"there are {self._cameras} cameras, number {numbers} was asked for")
        buffer = io.BytesIO()
        picture = self.picture(int(config["image_width"]), int(config["image_height"]))
        Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
        return {"message_list": [base64.b64encode(buffer.getvalue()).decode()] * len(numbers)}

    def _render_script(self, numbers: list[int], texts: list[str]) -> Answer:
        messages = []
        for line in texts[1:]:
            found = _LINE.fullmatch(line.strip())
            if found is None:
                raise _Refused(f"a line must be `<char0> [action] <class> (id)`, got {line!r}")
            messages.append(self._execute(found[1], found[2].lower()))
        return {"message": json.dumps({"0": {"message": "; ".join(filter(None, messages)) or "Success"}})}

    def _execute(self, line: str, verb: str) -> str:
        if self._character is None:
            raise _Refused("there is no character to act")
        if verb in ("turnleft", "turnright"):
            self._yaw = (self._yaw + (TURN if verb == "turnright" else -TURN)) % 360
            self._pitch = 0.0
            return ""
        try:
            script = self._scripts.read_script_from_list_string([line])
        except self._common.Error as error:
            raise _Refused(str(error)) from error
        named = [parameter.instance for parameter in script[0].parameters]
        missing = [str(node) for node in named if node not in self._nodes]
        if missing:
            raise _Refused(f"no object has the id {', '.join(missing)}")
        executor = self._execution.ScriptExecutor(self._state, {}, 0)
        try:
            success, state = executor.execute_one_step(script, self._state)
        except self._common.Error as error:
            raise _Refused(str(error)) from error
        if not success:
            raise _Refused(executor.info.get_error_string() or f"{line} cannot be done")
        graph = state.to_dict()
        if verb == "standup":
            self._step_off()
            # The engine leaves whoever stood up on the seat, which then is taken for ever.
            graph["edges"] = [
                edge for edge in graph["edges"] if (edge["from_id"], edge["relation_type"]) != (self._character, "ON")
            ]
        # Into a fresh graph, for the engine looks the character up in the graph that it began with and never sees
        # that it sits.
        self._state = self._new_state(graph)
        self._state.executor_data = state.executor_data
        if verb in ("walk", "run", "sit"):
            self._stand_before(named[0], seated=verb == "sit")
        self._read()
        return ""

    def _step_off(self) -> None:
        """From a seat to the floor before it, looking ahead."""
        seats = [e["to_id"] for e in self._edges if (e["from_id"], e["relation_type"]) == (self._character, "ON")]
        for seat in seats:
            axis, sign = self._front(seat)
            at = list(self._centre(seat))
            at[axis] += sign * (self._size(seat)[axis] / 2 + GAP / 2)
            self._x, self._z = at[0], at[2]
        self._pitch = 0.0

    def _stand_before(self, node: int, *, seated: bool) -> None:
        """Before the furniture that a thing is on, looking at the thing; on a seat, looking into the room."""
        if node in self._rooms:
            x, _, z = self._nodes[node]["bounding_box"]["center"]
            self._x, self._z, self._pitch = float(x), float(z), 0.0
            return
        if node in self._held:
            return
        base = node
        while base in self._parent:
            base = self._parent[base][0]
        axis, sign = self._front(base)
        at, size = list(self._centre(base)), self._size(base)
        target = self._centre(node)
        if seated:
            at[axis] -= sign * size[axis] * 0.35  # so far back that the seat is in the picture
            self._x, self._z = at[0], at[2]
            self._yaw = {(0, 1): 90.0, (0, -1): 270.0, (2, 1): 0.0, (2, -1): 180.0}[axis, sign]
            self._pitch = 30.0
            return
        side = 2 - axis
        at[axis] += sign * (size[axis] / 2 + GAP)
        at[side] = target[side]
        self._x, self._z = at[0], at[2]
        away = math.hypot(target[0] - self._x, target[2] - self._z)
        self._yaw = math.degrees(math.atan2(target[0] - self._x, target[2] - self._z)) % 360
        drop = math.degrees(math.atan2(AGENT_HEIGHT + 0.675 - target[1], max(0.3, away)))
        self._pitch = min(_MAX_PITCH, max(-_MAX_PITCH, drop))


def _nothing(player: VirtualHomePlayer, numbers: list[int], texts: list[str]) -> None:
    """Requests that mean nothing here."""


_REQUESTS: dict[str, Any] = {
    "idle": _nothing,
    "clear": _nothing,
    "environment": VirtualHomePlayer._set_environment,
    "fast_reset": VirtualHomePlayer._set_environment,
    "expand_scene": VirtualHomePlayer._expand,
    "add_character_camera": VirtualHomePlayer._add_camera,
    "add_character": VirtualHomePlayer._add_character,
    "camera_count": lambda player, numbers, texts: {"value": player._cameras},
    "environment_graph": VirtualHomePlayer._graph,
    "camera_image": VirtualHomePlayer._images,
    "render_script": VirtualHomePlayer._render_script,
}


class _Handler(BaseHTTPRequestHandler):
    player: VirtualHomePlayer
    lock: threading.Lock

    def do_POST(self) -> None:  # the name is the standard library's
        try:
            request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            with self.lock:
                status, answer = 200, self.player.answer(request)
        except Exception as error:  # one bad request must not end the player
            status, answer = 500, {"message": f"{type(error).__name__}: {error}"}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


def player_server(player: VirtualHomePlayer, port: int = 0) -> ThreadingHTTPServer:
    """A server on loopback, at ``port`` or any free one (``server.server_port``)."""
    handler = type("Handler", (_Handler,), {"player": player, "lock": threading.Lock()})
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


def main() -> None:
    """Serve until stopped; with ``--with-parent`` until standard input closes, so that no player outlives its client."""
    parser = argparse.ArgumentParser(description="The embedded VirtualHome player, on loopback.")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one; the port is printed")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    arguments = parser.parse_args()
    server = player_server(VirtualHomePlayer(), arguments.port)
    print(server.server_port, flush=True)
    if arguments.with_parent:
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
