"""Names of processes that outlive them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from selu import processes


def test_a_process_is_dead_when_it_has_ended() -> None:
    code = "from selu import processes; print(processes.own_name())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert processes.is_dead(ended) is True
    assert processes.is_dead(processes.own_name()) is False


def test_of_another_machine_nobody_knows_and_of_an_earlier_boot_only_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_machine", lambda: "host-boot-container")
    assert processes.is_dead("host-earlier-container.1.1") is None
    assert processes.is_dead("host-earlier-container.1.1", own_host=True) is True
    assert processes.is_dead("host-boot-other.1.1", own_host=True) is None
    assert processes.is_dead("elsewhere-boot-container.1.1", own_host=True) is None
    assert processes.is_dead("0123456789ab.1.1", own_host=True) is None
    assert processes.is_dead("no name") is None
