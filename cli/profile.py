"""Prefect's profile for this command: its database lies beside the artifacts, its page asks nobody, little is printed.
What the environment says already counts more.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

from selu.errors import SeluError

__all__ = ["API_PORT", "keep_leases", "own_server", "running_server", "server_note", "use_profile"]

API_PORT = 4200

_QUIET_PAGE = {
    # The second UI asks a telemetry host from the browser; the first does not.
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
_RECORDING = {
    # The server records task runs three times as fast in batches of this size (measured: 69 s -> 23 s for 3,000).
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "200",
    # One writer at a time: on a busy machine the next one waits longer than the ten seconds that are the default.
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
}


def server_note(prefect_home: Path) -> Path:
    """The file in which ``selu ui`` says where its server listens."""
    return prefect_home / "server.json"


def running_server(prefect_home: Path) -> str | None:
    """Address of the API of a ``selu ui`` over the same database, if one is up: two servers on one SQLite file would
    wait for each other."""
    try:
        url = str(json.loads(server_note(prefect_home).read_text())["api"])
        with urllib.request.urlopen(f"{url}/health", timeout=1.0) as answer:
            return url if answer.status == 200 else None
    except (OSError, ValueError, KeyError, TypeError, urllib.error.URLError):
        return None


def keep_leases() -> None:
    """Slots whose holders were killed come free even if the server was restarted meanwhile. Call it before Prefect is
    imported."""
    os.environ.setdefault(
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem"
    )


def use_profile(prefect_home: Path, *, verbose: bool = False) -> None:
    """Set the environment that Prefect reads when it is first imported; so call this before that."""
    values = {
        **_QUIET_PAGE,
        **_RECORDING,
        "PREFECT_HOME": str(prefect_home),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        # Its first start makes a database, which takes minutes on a machine whose cores are busy with something else.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "selu",
        # What is logged from a thread of the library's own has no run to belong to.
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        # What goes wrong is said by the command itself, in one sentence.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO" if verbose else "CRITICAL",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    for name, value in values.items():
        os.environ.setdefault(name, value)
    keep_leases()
    # Names that change in the next major version are for their authors, not for whoever runs a round.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.|trl\.|peft\.")
    if "PREFECT_API_URL" not in os.environ:
        url = running_server(prefect_home)
        if url is not None:
            os.environ["PREFECT_API_URL"] = url


# Ends the server that a command has started for itself, if the command is killed: it would stay, and the next one start
# another over the same database.
_GUARDIAN = """
import os, signal, sys, time
command, wanted = int(sys.argv[1]), b"prefect.server.api.server:create_app"

def is_its_server(pid, parents):
    try:
        with open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/cmdline", "rb") as line:
            return int(stat.read().rpartition(")")[2].split()[1]) in parents and wanted in line.read()
    except OSError:
        return False

def others():
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid()]

server = None
os.setsid()
while os.getppid() == command:
    if server is None and os.path.isdir("/proc"):
        server = next((pid for pid in others() if is_its_server(pid, {command})), None)
    time.sleep(0.5)
if server is not None and is_its_server(server, {1, os.getppid()}):
    os.kill(int(server), signal.SIGTERM)
"""


def _start_server_deaf_to_ctrl_c() -> None:
    """Start the server that Prefect would start by itself, with SIGINT blocked in the starting thread and so in the server:
    a terminal sends Ctrl-C to both, and a command whose server is gone cannot say what it still has to say.

    Raises:
        SeluError: It does not start.
    """
    from prefect.server.api.server import SubprocessASGIServer

    failures: list[Exception] = []

    def start() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            SubprocessASGIServer().start()
        except Exception as error:
            failures.append(error)

    # A daemon, so that who is stopped meanwhile need not wait for it; Prefect ends the server when Python ends.
    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise SeluError(f"Prefect's own server does not start ({failures[0]}); run again.") from failures[0]


@contextlib.contextmanager
def own_server() -> Iterator[None]:
    """Where the server lives and dies with this command: it does so even if the command is killed, and there are no
    heartbeats, whose thread takes a second to join, and which nobody misses. With a server of its own
    (``PREFECT_API_URL``) they stay, so that it sees a killed run."""
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    if PREFECT_API_URL.value() is not None:  # by the environment or a profile of Prefect's
        yield
        return
    guardian = subprocess.Popen([sys.executable, "-I", "-S", "-c", _GUARDIAN, str(os.getpid())])
    try:
        _start_server_deaf_to_ctrl_c()
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield
    finally:
        guardian.kill()
        guardian.wait()
