"""Names of processes that outlive them: whether the one that left something behind is still there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from functools import cache
from pathlib import Path

__all__ = ["is_dead", "own_name"]


@cache
def _machine() -> str:
    """Where a process number means something: ``<host>-<boot>-<container>``."""
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return "-".join(hashlib.sha256(part.encode()).hexdigest()[:8] for part in (socket.gethostname(), boot, namespace))


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


def is_dead(name: str, *, own_host: bool = False) -> bool | None:
    """Whether the process of a name from :func:`own_name` has ended; None of one elsewhere, or of no such name.

    With `own_host` a host of this one's name is taken to be this one, so that a process of an earlier boot is dead: right for
    what belongs to one host, and not for what machines share, two of which may have one name.
    """
    parts = name.split(".")
    if len(parts) != 3 or not parts[1].isdecimal():
        return None
    if parts[0] != _machine():
        host, _, rest = parts[0].partition("-")
        own, _, now = _machine().partition("-")
        another_boot = rest.partition("-")[0] != now.partition("-")[0]
        return True if own_host and host == own and another_boot else None
    try:
        return _start_time(int(parts[1])) != parts[2]
    except ProcessLookupError:
        return True
