"""Names of processes that outlive them: whether the one that left something behind is still there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from pathlib import Path

__all__ = ["is_dead", "own_name"]


def _machine() -> str:
    """Where a process number means something: one boot of one host, in one container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _start_time(pid: int) -> str:
    """When a process started, in the kernel's ticks; process numbers come round again, this does not.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            raise ProcessLookupError(pid) from None
        # No /proc (macOS): the number alone has to do.
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)
        return "0"
    # The program's name stands in brackets and may hold blanks; behind it come the state and, as field 22, the start.
    fields = line.rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return fields[19]


def own_name() -> str:
    """Name of this process: ``<machine>.<number>.<start>``."""
    return f"{_machine()}.{os.getpid()}.{_start_time(os.getpid())}"


def is_dead(name: str) -> bool | None:
    """Whether the process of a name from :func:`own_name` has ended; None of one on another machine, or of no such name."""
    parts = name.split(".")
    if len(parts) != 3 or parts[0] != _machine() or not parts[1].isdecimal():
        return None
    try:
        return _start_time(int(parts[1])) != parts[2]
    except ProcessLookupError:
        return True
