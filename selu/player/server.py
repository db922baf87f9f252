"""The embedded household behind AI2-THOR's FIFO protocol: what the unmodified ``ai2thor`` Controller starts and drives.

The player speaks first. Each message is fields of ``!BI`` (type, length) and body, closed by type 255; images are raw
bytes, rows bottom-up. Protocol after ``ai2thor.fifo_server`` of ai2thor 5.0.0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import struct
from typing import Any, BinaryIO

import msgpack
import numpy as np

from selu.player.household import Household, Outcome, instance_colour

METADATA, RGB_IMAGE, IDS_IMAGE, END = 1, 4, 9, 255


def field(kind: int, body: bytes) -> bytes:
    """One field of a message."""
    return struct.pack("!BI", kind, len(body)) + body


class Player:
    """Serves one household over the pair of pipes that the client made."""

    def __init__(self, household: Household) -> None:
        self.household = household
        self.sequence_id = 0
        self.segmentation = False

    def message(self, action: str, outcome: Outcome, *, looking: bool = True) -> bytes:
        """Metadata and images of the present moment; without the images if nobody is `looking`."""
        household = self.household
        metadata = {
            "agents": [household.metadata(action, outcome, looking=looking)],
            "sequenceId": self.sequence_id,
            "activeAgentId": 0,
            "thirdPartyCameras": [],
        }
        parts = [field(METADATA, msgpack.packb(metadata))]
        if not looking:
            return b"".join([*parts, field(END, b"")])
        view = household.view()
        parts.append(field(RGB_IMAGE, view.rgb[::-1].tobytes()))
        if self.segmentation:
            colours = np.array([(*instance_colour(i), 255) for i in range(len(household.instance_ids()))], np.uint8)
            colours = np.concatenate([colours, np.array([(0, 0, 0, 255)], np.uint8)])  # index -1: nothing
            parts.append(field(IDS_IMAGE, colours[view.segmentation][::-1].tobytes()))
        return b"".join([*parts, field(END, b"")])

    def obey(self, request: dict[str, Any]) -> tuple[str, Outcome]:
        """Do what a request asks."""
        self.sequence_id = request["sequenceId"]
        if request["action"] == "Initialize":
            self.segmentation = bool(request.get("renderInstanceSegmentation") or request.get("renderObjectImage"))
        return request["action"], self.household.act(request)

    def serve(self, server_pipe: str, client_pipe: str) -> None:
        """Answer until the client hangs up."""
        with open(server_pipe, "wb") as out:
            action, outcome = "Initialize", Outcome()
            out.write(self.message(action, outcome))
            out.flush()
            with open(client_pipe, "rb") as requests:
                while (request := read_request(requests)) is not None:
                    action, outcome = self.obey(request)
                    out.write(self.message(action, outcome, looking=request.get("renderImage", True)))
                    out.flush()


def read_request(pipe: BinaryIO) -> dict[str, Any] | None:
    """The next action, or None when the client has hung up."""
    body = b""
    while True:
        header = pipe.read(5)
        if len(header) < 5:
            return None
        kind, length = struct.unpack("!BI", header)
        if kind == END:
            request: dict[str, Any] = json.loads(body)
            return request
        body = pipe.read(length)


def main() -> None:
    """Started by the Controller with Unity's command line; only the screen's size is read from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-screen-width", type=int, default=300)
    parser.add_argument("-screen-height", type=int, default=300)
    arguments, _ = parser.parse_known_args()
    household = Household(arguments.screen_width, arguments.screen_height)
    pipes = os.environ["AI2THOR_FIFO_SERVER_PIPE_PATH"], os.environ["AI2THOR_FIFO_CLIENT_PIPE_PATH"]
    with contextlib.suppress(
        BrokenPipeError, KeyboardInterrupt
    ):  # the client is gone or asks to stop: so is the player
        Player(household).serve(*pipes)


if __name__ == "__main__":
    main()
