"""The server that a command starts for itself ends with the command, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_COMMAND = """
import subprocess, sys, time
from selu.cli.profile import own_server
with own_server():
    from prefect.server.api.server import SubprocessASGIServer
    server = SubprocessASGIServer().server_process
    other = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
    print(server.pid, other.pid, flush=True)
    time.sleep(600)
"""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the guardian looks into /proc")
def test_the_server_of_a_killed_command_does_not_stay(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {
        "PYTHONPATH": os.getcwd(),
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    }
    with subprocess.Popen([sys.executable, "-c", _COMMAND], stdout=subprocess.PIPE, env=environment) as command:
        assert command.stdout is not None
        server, other = map(int, command.stdout.readline().split())
        time.sleep(2)
        command.kill()
    try:
        until = time.monotonic() + 20
        while _runs(server) and time.monotonic() < until:
            time.sleep(0.2)
        assert not _runs(server)
        assert _runs(other), "it is no server"
    finally:
        os.kill(other, signal.SIGKILL)
