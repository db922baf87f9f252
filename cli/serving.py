"""A Prefect server on this machine, and the deployments that it runs."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from selu import processes
from selu.cli.profile import running_server, server_note, use_profile
from selu.config import Settings, validate_settings
from selu.errors import ConfigError, TransientError
from selu.rounds import Workspace

__all__ = ["serve_deployments", "server"]

_STARTS_WITHIN = 180.0
"""Seconds: its first start makes a database."""
_LOOKS_EVERY = 30.0
"""Seconds between two looks for runs whose process is dead."""


@contextlib.contextmanager
def server(settings: Settings, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server over the data folder's database, on the loopback address; it ends with the block."""
    workspace = Workspace.of(settings)
    workspace.store()
    use_profile(workspace.prefect_home, verbose=True)
    environment = {**os.environ, "PREFECT_SERVER_API_PORT": str(port), "PREFECT_SERVER_API_HOST": "127.0.0.1"}
    environment.setdefault("PREFECT_UI_URL", f"http://127.0.0.1:{port}")  # for links in notifications
    # Nobody is asked for a password here, so no other page in a browser may read or start anything.
    own = f"http://127.0.0.1:{port},http://localhost:{port}"
    environment.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", own)
    environment.pop("PREFECT_API_URL", None)
    note = server_note(workspace.prefect_home)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"api": f"http://127.0.0.1:{port}/api"}))
    running = subprocess.Popen([sys.executable, "-m", "selu.cli.pages", str(workspace.data_dir)], env=environment)
    watched = threading.Event()
    url = f"http://127.0.0.1:{port}/api"
    threading.Thread(target=_watch, args=(workspace.data_dir, url, watched), daemon=True).start()
    try:
        yield running
    finally:
        watched.set()
        note.unlink(missing_ok=True)
        running.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(10)
        running.kill()


def _watch(data_dir: Path, url: str, ended: threading.Event) -> None:
    """Look for runs of this data folder whose process is dead."""
    while not ended.wait(_LOOKS_EVERY):
        from selu.flows.crashes import mark_crashed

        mark_crashed(data_dir, url)


def serve_deployments(settings: Settings, file: Path, port: int, *, active: bool, say: Callable[[str], None]) -> None:
    """Serve a file's deployments until interrupted, with a server of their own unless one is up already.

    Raises:
        ConfigError: the file cannot be read, or names a flow or settings that do not exist.
        TransientError: the server does not come up.
    """
    workspace = Workspace.of(settings)
    workspace.store()  # a folder that cannot be used is said before anything starts
    home = workspace.prefect_home
    known = os.environ.get("PREFECT_API_URL") or running_server(home)
    # Prefect reads it when it is first imported, which the flows do.
    os.environ["PREFECT_API_URL"] = url = known or f"http://127.0.0.1:{port}/api"
    use_profile(home, verbose=True)
    wanted = _read(file, settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone(home))
        if known is None:
            with socket.socket() as free:
                if free.connect_ex(("127.0.0.1", port)) == 0:
                    raise ConfigError(
                        f"something answers on port {port} already, and it is no server of this data folder; stop it, or "
                        "take another port (--port)."
                    )
            _wait_for(url, stack.enter_context(server(settings, port)))
        from prefect import serve
        from prefect.client.schemas.schedules import CronSchedule

        deployments = []
        for name, item in wanted.items():
            flow = _flow(item["entrypoint"])
            schedules = [
                {
                    "schedule": CronSchedule(cron=one["cron"], timezone=one.get("timezone")),
                    "active": active or one.get("active", True),
                }
                for one in item.get("schedules", ())
            ]
            deployments.append(
                flow.to_deployment(
                    name=name,
                    description=item.get("description"),
                    tags=item.get("tags"),
                    parameters=item.get("parameters"),
                    schedules=schedules,
                    concurrency_limit=(item.get("concurrency_limit") or {}).get("limit"),
                )
            )
            say(f"{flow.name}/{name}: {'; '.join(one['cron'] for one in item.get('schedules', ())) or 'by hand'}")
        say(f"{url.removesuffix('/api')} (Ctrl-C ends it)")
        serve(*deployments, limit=1)


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Refuse where another process serves from the same data folder: each would replace, and at its end pause, the other's
    deployments."""
    note = home / "serving"
    if note.is_file() and processes.is_dead(note.read_text()) is False:
        raise ConfigError(
            f"another `selu serve` is at work on this data folder ({home.parent}); stop it first, or take another data_dir."
        )
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(processes.own_name())
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def _read(file: Path, settings: Settings) -> dict[str, dict[str, Any]]:
    """Deployments by name, with the settings that differ from the defaults below their own."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{file} cannot be read: {error}; expected Prefect's file of deployments (--file)."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("deployments"), list):
        raise ConfigError(f"{file} has no list `deployments`; expected Prefect's file of deployments (--file).")
    given = settings.model_dump(mode="json", exclude_defaults=True)
    found = {}
    for item in content["deployments"]:
        if not isinstance(item, dict) or not {"name", "entrypoint"} <= item.keys():
            raise ConfigError(f"{file}: a deployment needs a name and an entrypoint, got {item!r}.")
        _flow(item["entrypoint"])
        parameters = {**(item.get("parameters") or {})}
        parameters["settings"] = _merged(given, parameters.get("settings") or {})
        validate_settings(parameters["settings"])
        found[item["name"]] = {**item, "parameters": parameters}
    return found


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def _flow(entrypoint: str) -> Any:
    path, _, name = entrypoint.partition(":")
    module = "selu." + path.removesuffix(".py").replace("/", ".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"entrypoint {entrypoint}: there is no such flow ({error}).") from error


def _wait_for(url: str, running: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _STARTS_WITHIN
    while time.monotonic() < until and running.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(f"{url}/health", timeout=2.0):
            return
        time.sleep(0.5)
    raise TransientError(f"Prefect's server does not answer at {url} within {_STARTS_WITHIN:.0f} s; is the port taken?")
