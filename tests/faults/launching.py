"""Starts `selu` commands whose processes can be found and killed to the last one.

Importing torch, transformers and Prefect costs seconds in which no kill hits anything. So a :class:`Nursery`, a process
that has imported all of it and runs no thread of Python's, forks a child for each command: the same command line from
its first line on, in a session of its own. What a command starts carries a token in its environment, by which
:meth:`Run.family` finds simulators and servers wherever they went.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

__all__ = ["FAULT_CONFIG", "Nursery", "PlainCommands", "Run", "Server", "environment", "family_of", "free_port"]

REPOSITORY = Path(__file__).parents[2]
FAULT_CONFIG = Path(__file__).with_name("fault.yaml")

_TOKEN = "SELU_FAULT_RUN"
_PLAYER = b"selu.player.server"
_FLOW_RUN = (b"multiprocessing.spawn", b"prefect.engine", b"prefect.flow_engine")


def environment(home: Path, api: str | None) -> dict[str, str]:
    """What commands, servers and nurseries are started with: nobody is called, libraries start no threads."""
    values = {
        **os.environ,
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "HF_HUB_OFFLINE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "1000",
        "PREFECT_HOME": str(home),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    values.pop("PREFECT_API_URL", None)
    return values if api is None else {**values, "PREFECT_API_URL": api}


def family_of(token: str, session: int | None = None) -> dict[int, bytes]:
    """Command lines, by process number, of what carries a token or belongs to a session; the dead do not count."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] in "ZX":
                continue
            if int(fields[3]) == session or token.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes()
    return found


@dataclass
class Run:
    """A command at work. `leader` is the process that runs the flow; its number is also that of its session."""

    leader: int
    token: str
    log: Path
    started: float = field(default_factory=time.monotonic)
    cpu: float = 0.0
    """Seconds of processor time, known once a forked one has ended; of its simulators those that it ended itself."""
    _owner: Any = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._owner.poll(self)

    def wait(self, seconds: float) -> int:
        """Its exit code; raises TimeoutError."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"the command did not end within {seconds:g} s; its log is {self.log}")
            time.sleep(0.02)
        return code

    def kill(self) -> None:
        """SIGKILL to the flow's process alone: what it started has to notice by itself."""
        os.kill(self.leader, signal.SIGKILL)

    def family(self) -> dict[int, bytes]:
        """Every living process that the command started, itself included."""
        return family_of(self.token, self.leader)

    def flows(self) -> list[int]:
        """Process numbers of the flow runs of a runner."""
        return [pid for pid, line in self.family().items() if any(name in line for name in _FLOW_RUN)]

    def players(self) -> list[int]:
        """Process numbers of its simulators, guardians not among them."""
        return [pid for pid, line in self.family().items() if _PLAYER in line and b"-c" not in line.split(b"\0")]

    def wait_until_alone(self, seconds: float) -> float | None:
        """Seconds until nothing that the command started lives any more; None if something still does then."""
        began = time.monotonic()
        while self.family():
            if time.monotonic() - began > seconds:
                return None
            time.sleep(0.05)
        return time.monotonic() - began

    def end(self) -> None:
        """Kill whatever is left of it."""
        for process in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def output(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class PlainCommands:
    """Starts commands as a shell does: `python -m selu.cli.main ...`, imports and all."""

    def __init__(self, home: Path, api: str | None = None) -> None:
        self.home, self.api = home, api
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def start(
        self, arguments: Sequence[str], log: Path, more: dict[str, str] | None = None, before: Sequence[str] = ()
    ) -> Run:
        """Start `selu` with these arguments; `before` is what stands before Python on the command line."""
        token = uuid.uuid4().hex
        with log.open("ab") as out:
            running = subprocess.Popen(
                [*before, sys.executable, "-m", "selu.cli.main", *arguments],
                env={**environment(self.home, self.api), **(more or {}), _TOKEN: token},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd=REPOSITORY,
            )
        self._running[running.pid] = running
        return Run(running.pid, token, log, _owner=self)

    def poll(self, run: Run) -> int | None:
        return self._running[run.leader].poll()


class Nursery:
    """A warm process that forks commands. Its commands report to a server that is not theirs."""

    def __init__(self, home: Path, api: str, log: Path) -> None:
        self.home = home
        self._log: IO[bytes] = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.launching"],
            env=environment(home, api),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=REPOSITORY,
        )
        self._ended: dict[int, int] = {}
        self.threads = int(self._answer()["ready"])

    def start(self, arguments: Sequence[str], log: Path, more: dict[str, str] | None = None) -> Run:
        """Fork a child that runs `selu` with these arguments."""
        token = uuid.uuid4().hex
        answer = self._ask({"arguments": list(arguments), "log": str(log), "more": {**(more or {}), _TOKEN: token}})
        return Run(int(answer["started"]), token, log, _owner=self)

    def poll(self, run: Run) -> int | None:
        if run.leader not in self._ended:
            answer = self._ask({"poll": run.leader})
            if answer["code"] is None:
                return None
            self._ended[run.leader], run.cpu = int(answer["code"]), answer["cpu"]
        return self._ended[run.leader]

    def close(self) -> None:
        """End the nursery; commands at work are their owner's matter."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the nursery ended; its log is {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _nurse() -> None:
    """The nursery's own life: import everything, then fork at each request."""
    home = Path(os.environ["PREFECT_HOME"])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from selu.cli.profile import use_profile

    use_profile(home)
    import importlib

    from selu.cli.main import app

    for name in (
        "base_model.packaging",
        "finetuning",
        "flows.self_learning",
        "general_probe",
        "models.transformers_engine",
    ):
        importlib.import_module(f"selu.{name}")
    for name in ("reporting", "rollout", "tasks.planning", "worlds.thor"):
        importlib.import_module(f"selu.{name}")

    threads = [Path(f"/proc/self/task/{number}/comm").read_text().strip() for number in os.listdir("/proc/self/task")]
    # Arrow's allocator has a thread, and handlers of its own for a fork.
    others = [name for name in threads if name != "jemalloc_bg_thd"]
    if len(others) != 1:
        raise RuntimeError(f"a process that forks must have one thread, this one has {', '.join(others)}")
    print(json.dumps({"ready": len(others)}), file=answers, flush=True)
    codes: dict[int, int] = {}
    seconds: dict[int, float] = {}
    # Unbuffered: what a parent has read ahead would be read by its children as well.
    while line := _line(0):
        request = json.loads(line)
        if "poll" in request:
            with contextlib.suppress(ChildProcessError):
                pid, status, used = os.wait4(request["poll"], os.WNOHANG)
                if pid:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    seconds[pid] = used.ru_utime + used.ru_stime
            answer = {"code": codes.get(request["poll"]), "cpu": seconds.get(request["poll"])}
            print(json.dumps(answer), file=answers, flush=True)
            continue
        child = os.fork()
        if child == 0:
            os.setsid()
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(answers.fileno())
            os.environ.update(request["more"])
            _change_clock([float(value) for value in os.environ.get("SELU_FAULT_CLOCK", "0").split(",")])
            sys.argv = ["selu", *request["arguments"]]
            app(request["arguments"])
            return
        print(json.dumps({"started": child}), file=answers, flush=True)


def _change_clock(offsets: Sequence[float]) -> None:
    """Add seconds to what this process takes for the time: each value for three seconds, the last one for ever.

    Files get their times from the kernel, whose clock stays: to this process they are as old or as new as the clock says.
    """
    if offsets == [0.0]:
        return
    import datetime

    import selu.flows.learning_round
    import selu.rounds
    import selu.store

    began, real, nanoseconds = time.monotonic(), time.time, time.time_ns

    def offset() -> float:
        return offsets[min(int((time.monotonic() - began) / 3.0), len(offsets) - 1)]

    class Changed(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime.fromtimestamp(real() + offset(), tz)

    time.time = lambda: real() + offset()
    time.time_ns = lambda: nanoseconds() + int(offset() * 1e9)
    for module in (selu.store, selu.rounds, selu.flows.learning_round):
        setattr(module, "datetime", Changed)  # noqa: B010 (it is their class of this name)


def _line(descriptor: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            return b""
        line += byte
    return line


# Prefect's server ------------------------------------------------------------------------------------------------------


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class Server:
    """A Prefect server of its own on a free port, which can be killed and started again."""

    def __init__(self, home: Path, log: Path, port: int | None = None) -> None:
        self.home, self.log, self.port = home, log, free_port() if port is None else port
        self.api = f"http://127.0.0.1:{self.port}/api"
        self._token = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        from selu.cli.profile import use_profile

        with _environ({**environment(self.home, None), "PREFECT_SERVER_API_PORT": str(self.port), _TOKEN: self._token}):
            use_profile(self.home)
            with self.log.open("ab") as out:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "prefect", "server", "start"],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
        until = time.monotonic() + 180
        while time.monotonic() < until:
            with (
                contextlib.suppress(OSError, urllib.error.URLError),
                urllib.request.urlopen(f"{self.api}/health", timeout=2.0),
            ):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.2)
        raise RuntimeError(f"the server did not come up; its log is {self.log}")

    def ask(self, path: str, content: object = None) -> Any:
        """The API's answer to a request; one with content is a POST."""
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{self.api}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30.0) as answer:
            return json.loads(answer.read())

    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL to all of it."""
        assert self._process is not None
        for process in family_of(self._token, self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def _environ(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    _nurse()
