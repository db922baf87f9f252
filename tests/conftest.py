"""Shared by all floors: one Prefect server, one tiny model, and a kitchen in place of the world."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any library of theirs is imported: no test talks to anybody.
os.environ.update(
    {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """Prefect's own harness: a server with a database that goes with the session."""
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    quiet = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW: "ignore"}
    with prefect_test_harness(server_startup_timeout=180), temporary_settings(quiet):
        yield


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of a few thousand parameters."""
    from tests.tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def readme_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module `corridor` of selu/worlds/README.md, for one test; gives the text of the test beside it."""
    import selu.worlds
    from selu.worlds.actions import SKILL_SETS

    text = (Path(selu.worlds.__file__).parent / "README.md").read_text(encoding="utf-8")
    world, test = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "corridor.py").write_text(world, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "corridor", raising=False)
    monkeypatch.delitem(SKILL_SETS, "corridor:GRAMMAR", raising=False)
    return test


@pytest.fixture
def dummies(monkeypatch: pytest.MonkeyPatch, prefect_server: None) -> None:
    """The dummy world and models for one test."""
    from tests.dummy_world import install

    install(monkeypatch)
