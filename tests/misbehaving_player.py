"""A player of AI2-THOR's protocol for tests: a room of noise, quick to start, that misbehaves as it is told to.

``python tests/misbehaving_player.py MODE [--at ACTION] [--once FILE] [--record FILE]``: it misbehaves when it is asked
for ACTION; with FILE only if that does not exist yet, and it makes it. ``--record`` appends the ids of its processes.
What the agent sees is drawn from its pose alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgpack
import numpy as np

METADATA, RGB_IMAGE, IDS_IMAGE, END = 1, 4, 9, 255
SIZE = 96
NAMES = ("Fridge|1", "Mug|1", "Chair|1", "Lamp|1")
FLAGS = ("pickupable", "openable", "toggleable", "breakable", "sliceable", "dirtyable", "receptacle")
FLAGS += ("canFillWithLiquid",)
STATES = ("isOpen", "isToggled", "isBroken", "isSliced", "isDirty", "isFilledWithLiquid", "isPickedUp")
AT_START = ("hangs", "dies_before_its_pipe", "dies_unheard", "says_nothing", "never_reads")


class Room:
    """The agent's pose, and what is seen from it."""

    def __init__(self) -> None:
        self.x, self.z, self.yaw, self.horizon = 0.0, 0.0, 0.0, 0.0

    def obey(self, request: dict[str, Any]) -> Any:
        action = request["action"]
        if action == "GetScenesInBuild":
            return [f"FloorPlan{number}_physics" for number in (1, 21, 22)]
        if action == "Initialize":
            return {"cameraNearPlane": 0.1, "cameraFarPlane": 20.0}
        if action == "GetReachablePositions":
            return [{"x": 0.25 * k, "y": 0.9, "z": 0.0} for k in range(4)]
        if action == "Reset":
            self.__init__()  # type: ignore[misc]
        elif action == "TeleportFull":
            self.x, self.z = request["position"]["x"], request["position"]["z"]
            self.yaw, self.horizon = request["rotation"]["y"], request["horizon"]
        elif action in ("RotateLeft", "RotateRight"):
            self.yaw = (self.yaw + request["degrees"] * (1 if action == "RotateRight" else -1)) % 360
        elif action in ("MoveAhead", "MoveBack"):
            way = request["moveMagnitude"] * (1 if action == "MoveAhead" else -1)
            self.x += way * math.sin(math.radians(self.yaw))
            self.z += way * math.cos(math.radians(self.yaw))
        return None

    def frame(self) -> np.ndarray[Any, Any]:
        seed = [round(1000 * (number + 100)) for number in (self.x, self.z, self.yaw, self.horizon)]
        return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)

    def metadata(self, action: str, value: Any) -> dict[str, Any]:
        return {
            "screenWidth": SIZE,
            "screenHeight": SIZE,
            "sceneName": "FloorPlan21_physics",
            "lastAction": action,
            "lastActionSuccess": True,
            "errorMessage": "",
            "errorCode": "",
            "actionReturn": value,
            "thirdPartyCameras": [],
            "inventoryObjects": [],
            "agent": {
                "position": {"x": self.x, "y": 0.9, "z": self.z},
                "rotation": {"x": 0.0, "y": self.yaw, "z": 0.0},
                "cameraHorizon": self.horizon,
            },
            "objects": [
                {
                    "objectId": name,
                    "objectType": name.partition("|")[0],
                    "visible": True,
                    "distance": 1.0,
                    "axisAlignedBoundingBox": {
                        "center": {"x": 1.0, "y": 1.0, "z": float(k)},
                        "size": {"x": 0.2, "y": 0.2, "z": 0.2},
                    },
                    "parentReceptacles": None,
                    **dict.fromkeys(FLAGS, True),
                    **dict.fromkeys(STATES, False),
                }
                for k, name in enumerate(NAMES)
            ],
            "colors": [{"name": name, "color": [k + 1, 0, 0]} for k, name in enumerate(NAMES)],
        }


def field(kind: int, body: bytes) -> bytes:
    return struct.pack("!BI", kind, len(body)) + body


def answer(room: Room, sequence: int, action: str, value: Any, frame: np.ndarray[Any, Any], **changes: Any) -> bytes:
    agent = {**room.metadata(action, value), **changes}
    told = {"agents": [agent], "sequenceId": sequence, "activeAgentId": 0, "thirdPartyCameras": []}
    ids = np.zeros((SIZE, SIZE, 4), np.uint8)
    ids[..., 0] = np.repeat(np.arange(len(NAMES)) + 1, SIZE // len(NAMES))
    images = field(RGB_IMAGE, frame[::-1].tobytes()) + field(IDS_IMAGE, ids.tobytes())
    return field(METADATA, msgpack.packb(told)) + images + field(END, b"")


def read_request(pipe: BinaryIO) -> dict[str, Any] | None:
    body = b""
    while len(header := pipe.read(5)) == 5:
        kind, length = struct.unpack("!BI", header)
        if kind == END:
            request: dict[str, Any] = json.loads(body)
            return request
        body = pipe.read(length)
    return None


def wait() -> NoReturn:
    while True:
        time.sleep(60)


def misbehave(mode: str, out: BinaryIO, room: Room, request: dict[str, Any], before: np.ndarray[Any, Any]) -> None:
    """Do it; what comes back from here goes on."""
    sequence, action = request["sequenceId"], request["action"]
    value = room.obey(request)
    frame = room.frame()
    if mode == "dies":
        os._exit(7)
    elif mode == "dies_speaking":
        out.write(answer(room, sequence, action, value, frame)[:1000])
        out.flush()
        os._exit(7)
    elif mode == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif mode == "stalls":
        wait()
    elif mode == "trickles":
        for byte in answer(room, sequence, action, value, frame):
            out.write(bytes([byte]))
            out.flush()
            time.sleep(0.05)
    elif mode == "never_ends":
        while True:
            out.write(field(METADATA, msgpack.packb({})))
            out.flush()
            time.sleep(0.01)
    elif mode == "garbage":
        out.write(np.random.default_rng(0).bytes(5000))
    elif mode == "announces_4_GB":
        out.write(struct.pack("!BI", METADATA, 2**32 - 1))
    elif mode == "wrong_number":
        out.write(answer(room, sequence + 5, action, value, frame))
    elif mode == "lacks_objects":
        out.write(answer(room, sequence, action, value, frame, objects=None))
    elif mode == "lacks_the_rest":
        out.write(field(METADATA, msgpack.packb({"agents": [{}], "sequenceId": sequence})) + field(END, b""))
    elif mode == "small_picture":
        out.write(answer(room, sequence, action, value, frame[:50]))
    elif mode == "blank":
        out.write(answer(room, sequence, action, value, np.full_like(frame, 128)))
    elif mode == "stale":
        out.write(answer(room, sequence, action, value, before))
    else:
        raise SystemExit(f"no such mode: {mode}")
    out.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode")
    parser.add_argument("--at", default="RotateLeft")
    parser.add_argument("--once", type=Path)
    parser.add_argument("--record", type=Path)
    arguments, _ = parser.parse_known_args()
    mode = arguments.mode
    processes = [os.getpid(), os.getppid()]
    if mode == "leaks":
        # One child stays in the session, one leaves it; neither listens to a polite request.
        deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        for leaves in (False, True):
            child = subprocess.Popen([sys.executable, "-S", "-c", deaf], start_new_session=leaves)
            processes.append(child.pid)
    if arguments.record:
        with arguments.record.open("a") as file:
            file.write(" ".join(map(str, processes)) + "\n")

    def due() -> bool:
        if arguments.once is None:
            return True
        try:
            arguments.once.open("x").close()
        except FileExistsError:
            return False
        return True

    if mode in AT_START and due():
        if mode == "hangs":
            wait()
        if mode == "dies_before_its_pipe":
            sys.exit(3)
    server_pipe, client_pipe = (os.environ[f"AI2THOR_FIFO_{end}_PIPE_PATH"] for end in ("SERVER", "CLIENT"))
    room = Room()
    with open(server_pipe, "wb") as out:
        if mode == "dies_unheard":
            out.write(struct.pack("!BI", METADATA, 900) + b"half")
            out.flush()
            os._exit(4)
        if mode == "says_nothing":
            wait()
        out.write(answer(room, 0, "Initialize", None, room.frame()))
        out.flush()
        if mode == "never_reads":
            wait()
        with open(client_pipe, "rb") as requests:
            while (request := read_request(requests)) is not None:
                before = room.frame()
                if mode not in (*AT_START, "behaves", "leaks") and request["action"] == arguments.at and due():
                    misbehave(mode, out, room, request, before)
                    continue
                value = room.obey(request)
                out.write(answer(room, request["sequenceId"], request["action"], value, room.frame()))
                out.flush()


if __name__ == "__main__":
    main()
