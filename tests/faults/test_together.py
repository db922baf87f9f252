"""Two runs of the same round at once, whose clocks are changed."""

from __future__ import annotations

import time
from pathlib import Path

from tests.faults.campaign import Campaign
from tests.faults.disturbed import arguments
from tests.faults.stored import drafts, look

_YEAR, _DAY = 365 * 86400, 86400


def test_two_runs_at_once_with_changing_clocks_make_one_undisturbed_round(campaign: Campaign, tmp_path: Path) -> None:
    # One is a year ahead of the files that the other writes; that one goes back by a day while it runs.
    clocks = (f"0,{-_DAY}", f"{_YEAR}")
    data = tmp_path / "data"
    runs = []
    for number, clock in enumerate(clocks):
        log = tmp_path / f"{number}.log"
        runs.append(campaign.nursery.start(arguments(data), log, {"SELU_FAULT_CLOCK": clock}))
        until = time.monotonic() + 60
        # The second opens the store while the first is writing.
        while number == 0 and not drafts(data / "store") and time.monotonic() < until:
            time.sleep(0.01)
    for run in runs:
        assert run.wait(600) == 0, run.output()
        assert "Traceback" not in run.output()
    stored = look(data / "store")
    assert stored.digests == campaign.reference.digests
    assert stored.damaged == {}
    assert drafts(data / "store") == []
    assert not (data / "store" / "quarantine").exists()
    assert sum(name.kind == "round" for name in stored.whole) == 2
