"""AI2-THOR's client, supervised: no answer is waited for longer than was said, and no player outlives its client.

The client as it is waits for ever for a player that dies before it opens its pipe, spins where one dies later, and ends
nothing but the one process that it started. Here its protocol stays, and this differs:

- Pipes are opened for reading and writing, which never waits; each answer has a deadline, and whether the player still
  lives is looked at every :data:`GLANCE` seconds while it is waited for.
- A player runs below a *guardian*, in a session of its own. When the client's process is gone, however it went, the
  guardian ends that session within :data:`GLANCE` seconds.
- Stopping ends whatever descends from the player, at once.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import ai2thor
import ai2thor.platform
import numpy as np
from ai2thor.build import ExternalBuild
from ai2thor.controller import Controller
from ai2thor.fifo_server import FifoServer

from selu.errors import ConfigError, WorldError
from selu.worlds.programs import program_digest

if TYPE_CHECKING:
    from selu.worlds.thor import Observation

GLANCE = 0.1
"""Seconds between two looks at whether a player, or the client of one, still lives."""
LONGEST_FIELD = 1 << 26
"""Bytes. A picture of the largest size that settings allow, 2048 x 2048 of four bytes, is a quarter of it."""
WITNESSES = 3
"""Objects in view with which a picture cannot be of one colour, or stay the same when the agent moves. Before a bare wall,
or with one large thing all over the picture, it can: of 3,920 healthy frames of the embedded player 5 stayed the same, all
with none in view, and a fridge from close by is one colour."""

_GUARDIAN = f"""
import os, signal, subprocess, sys, time
client, *command = sys.argv[1:]
os.setsid()
player = subprocess.Popen(command)
while True:
    ended = player.poll() is not None
    if os.getppid() != int(client):
        os.killpg(0, signal.SIGKILL)
    if ended:
        break
    time.sleep({GLANCE})
sys.exit(player.returncode if player.returncode >= 0 else 128 - player.returncode)
"""


class PlayerLost(WorldError):
    """A player ended, did not answer in time, or answered garbage."""


def player_lost(error: BaseException | None) -> PlayerLost | None:
    """The loss behind an error of the client, which raises others in its course; None if there is none."""
    while error is not None and not isinstance(error, PlayerLost):
        error = error.__cause__ or error.__context__
    return error


class SupervisedController(Controller):  # type: ignore[misc]  # the client has no types
    """The Controller, with pipes that do not wait and a player that cannot be left behind.

    ``server_start_timeout`` and ``server_timeout`` are seconds for a player's first and for each later answer. What comes
    before a player is started, the download of its build above all, has no limit but a progress bar.

    Raises:
        PlayerLost: the player ended, did not answer in time, or answered garbage; it may be the error's cause.
        ConfigError: the build is older than the pipes.
    """

    def __init__(self, *, platform: str | None, local_executable_path: str | None, **arguments: Any) -> None:
        self._wanted = None if platform is None else getattr(ai2thor.platform, platform)
        if local_executable_path is not None:
            program = shlex.split(local_executable_path)[0]
            if shutil.which(program) is None:
                raise FileNotFoundError(f"there is no program {program}")
        try:
            super().__init__(platform=self._wanted, local_executable_path=local_executable_path, **arguments)
        except BaseException:
            with suppress(Exception):
                self.stop()
            raise

    def _build_server(self, host: str, port: int, width: int, height: int) -> None:
        if self._wanted is not None:
            self._build.platform = self._wanted  # of a local build the client knows no other than the system's
        if FifoServer.server_type not in self._build.server_types:
            raise ConfigError(f"The AI2-THOR build {self._build.name} is too old; name a later one in world.commit_id.")
        self.server = Pipes(width=width, height=height, timeout=self.server_timeout)

    def unity_command(self, width: int, height: int, headless: bool) -> list[str]:
        self.gpu_device = None  # CUDA_VISIBLE_DEVICES is about the models; the client would want vulkaninfo for it
        command = super().unity_command(width, height, headless)
        return [sys.executable, "-I", "-S", "-c", _GUARDIAN, str(os.getpid()), *command]

    def build_id(self) -> dict[str, str]:
        """What tells this simulator from another: a build's commit, or digests of a program of the user's own."""
        platform = self._build.platform.name()
        if not isinstance(self._build, ExternalBuild):
            return {"commit_id": self._build.commit_id, "platform": platform}
        command = self._build.executable_path
        identity = {"platform": platform, "sha256": program_digest(command)}
        program = Path(shutil.which(shlex.split(command)[0]) or "")
        # Unity's own id of a build stands beside its small launcher.
        boot = program.with_name(program.stem + "_Data") / "boot.config"
        if boot.is_file():
            settings = dict(line.partition("=")[::2] for line in boot.read_text("utf-8", "replace").splitlines())
            identity["build_guid"] = settings.get("build-guid", "")
        return identity


class Pipes(FifoServer):  # type: ignore[misc]
    """The client's ends of the pipes."""

    stopped = False
    server_pipe: BinaryIO | None
    client_pipe: BinaryIO | None

    def _recv_message(self, timeout: float) -> Any:
        self._patience, self._deadline = timeout, time.monotonic() + timeout
        if self.server_pipe is None:
            self.server_pipe = _open(self.server_pipe_path, "rb")
        return super()._recv_message(timeout)

    def _send_message(self, message_type: int, body: bytes) -> None:
        if self.client_pipe is None:
            self.client_pipe = _open(self.client_pipe_path, "wb")
        super()._send_message(message_type, body)

    def _read_with_timeout(self, server_pipe: BinaryIO, message_size: int, timeout: float | None) -> bytes:
        if message_size > LONGEST_FIELD:
            raise PlayerLost(f"it announced {message_size:,} bytes at once, which is garbage")
        message = bytearray()
        while len(message) < message_size:
            if time.monotonic() > self._deadline:
                raise PlayerLost(f"it did not answer within {self._patience:g} s")
            if _readable(server_pipe, GLANCE):
                message += os.read(server_pipe.fileno(), message_size - len(message))
            elif self.unity_proc.poll() is not None:
                raise PlayerLost(f"it ended with exit code {self.unity_proc.returncode}")
        return bytes(message)

    def receive(self, timeout: float | None = None) -> Any:
        """The next answer; raises PlayerLost where there is none, or none that the client understands."""
        try:
            return super().receive(timeout)
        except PlayerLost:
            raise
        except Exception as error:
            raise PlayerLost(f"it answered garbage, {type(error).__name__}: {error}") from error

    def stop(self) -> None:
        """End the player and whatever descends from it."""
        if self.stopped:
            return
        self.stopped = True
        super().stop()
        if self.unity_proc is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.unity_proc.pid, signal.SIGKILL)
            for process in _carrying(self.client_token):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self.unity_proc.wait(timeout=1.0)
        self.tmp_dir.cleanup()


def _open(path: str, mode: str) -> BinaryIO:
    return cast(BinaryIO, open(path, mode, opener=lambda name, _: os.open(name, os.O_RDWR)))


def _readable(pipe: BinaryIO, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _carrying(token: str) -> Iterator[int]:
    """Processes that were given a client's token, among them those that left the session (where there is a /proc)."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if token.encode() in environment.read_bytes():
                yield int(environment.parent.name)


def suspicion(before: Observation | None, now: Observation) -> str | None:
    """Why a frame cannot be what the agent sees, or None: it is of one colour, or the one before its pose changed.

    Both count only where several objects other than the held one are in view, by the segmentation or, without one, by the
    metadata: these call visible what covers no pixel, too.
    """
    in_view = set(now.areas) or {o["objectId"] for o in now.metadata["objects"] if o["visible"]}
    in_view -= {o["objectId"] for o in now.metadata["inventoryObjects"]}
    if len(in_view) < WITNESSES:
        return None
    if bool((now.frame == now.frame[0, 0]).all()):
        return f"its frame is of one colour with {len(in_view)} objects in view"
    if before is None or not _moved(before, now):
        return None
    return "its frame stayed the same while the agent moved" if np.array_equal(before.frame, now.frame) else None


def _moved(before: Observation, now: Observation) -> bool:
    """Whether the pose changed by 5 cm or 5 degrees."""
    was, is_ = before.metadata["agent"], now.metadata["agent"]
    turn = (is_["rotation"]["y"] - was["rotation"]["y"] + 180) % 360 - 180
    way = max(abs(is_["position"][axis] - was["position"][axis]) for axis in "xyz")
    return bool(way > 0.05 or abs(turn) > 5 or abs(is_["cameraHorizon"] - was["cameraHorizon"]) > 5)
