"""Our own server in a process of its own, small rounds that run against it, and what its API says of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from selu.config import Settings

ROOT = Path(__file__).parents[2]
_PATIENCE = 300.0
"""Seconds for a server or a round on a machine that is busy with something else."""


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without whatever else is said of Prefect in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        **more,
    }


@dataclass
class Served:
    """A server that is up, and the settings of the rounds that run against it."""

    address: str
    settings: Path
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes]
    seen: dict[str, set[float]] = field(default_factory=dict)
    """What the bars of the rounds showed while they ran, by their names."""

    def api(self, path: str, body: Any = None) -> Any:
        """What the API answers: to a POST if there is a body."""
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"{self.address}/api{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def run_rounds(self, times: int) -> str:
        """Run the same round so many times by the command, and return what it printed."""
        command = [sys.executable, "-m", "tests.ui.small_round", str(self.settings), str(times)]
        environment = {**self.environment, "PREFECT_API_URL": f"{self.address}/api"}
        output = self.log.with_suffix(".round")
        with output.open("wb") as file:
            running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
            until = time.monotonic() + _PATIENCE
            while running.poll() is None and time.monotonic() < until:
                with contextlib.suppress(OSError):
                    bars = {"artifacts": {"type": {"any_": ["progress"]}}, "limit": 200}
                    for bar in self.api("/artifacts/filter", bars):
                        self.seen.setdefault(bar["key"], set()).add(float(bar["data"]))
                time.sleep(0.3)
            running.kill()
        text = output.read_text(errors="replace")
        assert running.wait() == 0, f"{text}\n{self.log.read_text(errors='replace')}"
        return text


@contextlib.contextmanager
def serving(folder: Path, settings: Settings, *command: str, **environment: str) -> Iterator[Served]:
    """`selu COMMAND` with settings, which brings up a server; it ends with the block.

    `environment` is said to the server and to the rounds alike.
    """
    file, log, port = folder / "settings.yaml", folder / "server.log", free_port()
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    said = clean_environment(**environment)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "selu.cli.main", *command, "--config", str(file), "--port", str(port)],
            cwd=ROOT,
            env=said,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        served = Served(f"http://127.0.0.1:{port}", file, said, log, process)
        until = time.monotonic() + _PATIENCE
        while True:
            waited_for = process.poll() is None and time.monotonic() < until
            assert waited_for, log.read_text(errors="replace")
            with contextlib.suppress(OSError):
                served.api("/health")
                break
            time.sleep(0.3)
        yield served
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(15)
