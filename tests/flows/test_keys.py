"""The key of a model server goes to that server, and stays out of everything that a run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prefect.client.orchestration import get_client

from selu.errors import ConfigError
from selu.flows.labelling import labelling
from tests.dummy_world import small_settings
from tests.flows.test_labelling import _record
from tests.local_server import Answering, serving

KEY = "sk-canary-81c40d"


class _Server(Answering):
    """Says yes to everything, until it refuses the key and repeats it."""

    keys: ClassVar[set[str | None]] = set()
    refuses = False

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        type(self).keys.add(self.headers.get("authorization"))
        token = {"token": "yes", "logprob": -0.01}
        answer: Any = {
            "choices": [
                {"message": {"content": "yes"}, "logprobs": {"content": [{**token, "top_logprobs": [token]}]}},
            ]
        }
        if self.refuses:
            answer = {"error": f"no {self.headers.get('authorization')}"}
        self.answer(400 if self.refuses else 200, json.dumps(answer).encode())


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(_Server, "keys", set())
    with serving(_Server) as url:
        yield url


def _everything_prefect_knows() -> str:
    with get_client(sync_client=True) as client:
        return json.dumps(
            [
                client.request("POST", path, json={"limit": 200}).json()
                for path in ("/flow_runs/filter", "/task_runs/filter", "/logs/filter", "/artifacts/filter")
            ]
        )


@pytest.mark.parametrize("refuses", [False, True])
def test_a_key_is_in_nothing_that_a_run_leaves_behind(
    refuses: bool,
    address: str,
    prefect_server: None,
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(_Server, "refuses", refuses)
    recordings = tmp_path / "recordings"
    _record(recordings / "done", "open the fridge", ["Open(Fridge)", "Done"], [False, True, True])
    settings = small_settings(
        tmp_path / "data",
        small_model,
        critic={"engine": "openai", "path": "some/model", "base_url": address, "retries": 0},
        critic_finetuning={"enabled": False},
    )
    with caplog.at_level("DEBUG"):
        if refuses:
            with pytest.raises(ConfigError, match=r"Bearer \[key\]"):
                labelling(settings, recordings)
        else:
            labelling(settings, recordings)
    assert _Server.keys == {f"Bearer {KEY}"}, "it was sent"
    kept = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert len(kept) > 3
    assert [path for path in kept if KEY.encode() in path.read_bytes()] == []
    assert KEY not in _everything_prefect_knows()
    assert KEY not in caplog.text
    assert KEY not in "".join(capfd.readouterr())
