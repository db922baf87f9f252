"""Examines whether this machine can run a round. Each finding says what is wrong and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from selu.config import Settings
from selu.errors import SeluError
from selu.rounds import Workspace, finished_rounds

__all__ = ["Finding", "examine"]

_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "prefect", "duckdb", "pyarrow", "ai2thor", "gymnasium")
# A round of the default settings leaves about 200 MB; adapters of large models are far larger.
_DISK_BYTES = 2 * 1024**3


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    fine: bool
    text: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything that a round with these settings needs; the world last, because it takes longest."""
    yield Finding(
        "Python",
        sys.version_info >= (3, 11),
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
    )
    yield _packages()
    yield from _disk(settings)
    for name in ("actor", "critic"):
        yield _tried(name, lambda name=name: _model(settings, name))  # type: ignore[misc]
    yield _tried("world", lambda: _world(settings))


def _tried(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, look())
    except SeluError as error:
        return Finding(what, False, str(error))


def _packages() -> Finding:
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding(
            "packages", False, f"missing: {', '.join(missing)}; install the project again with its dependencies"
        )
    return Finding("packages", True, ", ".join(found))


def _disk(settings: Settings) -> Iterator[Finding]:
    workspace = Workspace.of(settings)
    try:
        store = workspace.store()
    except SeluError as error:
        yield Finding("data", False, str(error))
        return
    free = shutil.disk_usage(workspace.data_dir).free
    rounds = len(finished_rounds(store))
    text = f"{workspace.data_dir}, {free / 1024**3:.1f} GiB free, {rounds} finished rounds"
    if not os.access(store.root, os.W_OK):
        yield Finding("data", False, f"{store.root} may not be written; set data_dir to a folder that may")
    elif free < _DISK_BYTES:
        yield Finding("data", False, f"{text}; a round wants 2 GiB, so free some or set data_dir to another disk")
    else:
        yield Finding("data", True, text)


def _model(settings: Settings, name: str) -> str:
    from selu.models import model_revision
    from selu.models.transformers_engine import resolve_device

    model = settings.actor if name == "actor" else settings.critic
    resolve_device(model.device)
    return f"{model.path}, revision {model_revision(model)[:12]}, {model.dtype} on {model.device}"


def _world(settings: Settings) -> str:
    from selu.rollout import RandomPolicy, roll_out, shared_pool
    from selu.worlds.tasks import generate_tasks

    started = time.perf_counter()
    with shared_pool(settings.world).worlds(1) as worlds:
        up = time.perf_counter()
        tasks = generate_tasks(settings.tasks, worlds[0], settings.seed, 1)
        drawn = time.perf_counter()
        recording = roll_out(tasks, [settings.seed], RandomPolicy(), worlds)
        rate = len(recording.steps) / (time.perf_counter() - drawn)
    return f"{settings.world.name} is up after {up - started:.1f} s and makes {rate:.0f} steps/s in one player"
