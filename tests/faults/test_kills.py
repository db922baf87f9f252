"""A short campaign: every kill is checked as in the long one, whose figures are in `results/faults`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign
from tests.faults.disturbed import Disturbed, Reference
from tests.faults.stored import drafts, look


def _violations(campaign: Campaign, kind: str) -> list[str]:
    return [item for line in campaign.done(kind) for item in line["violations"]]


@pytest.mark.parametrize(("kind", "kills"), [("flow", 4), ("simulator", 1)])
def test_a_round_goes_on_after_kills_and_ends_as_if_undisturbed(campaign: Campaign, kind: str, kills: int) -> None:
    campaign.go_on(kind, kills)
    assert _violations(campaign, kind) == []
    logged = campaign.done(kind)
    assert sum(line["outcome"] == "ended" for line in logged) >= 1
    assert sum(line["outcome"] != "ended" for line in logged) == kills


def test_the_checks_notice_what_they_are_there_for(campaign: Campaign, finished: Path) -> None:
    root = finished / "store"
    seen = Disturbed(root, campaign.reference, "flow", 0)
    assert seen.check()[1] == []
    names = [name for name in campaign.reference.order if name.kind == "frames"]
    lost, altered = (root / name.kind / name.key[:2] / name.key for name in names[:2])
    lost.rename(finished / "elsewhere")
    table = next(altered.glob("*.parquet"))
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)
    wrong = seen.check()[1]
    assert {item.split(":")[0] for item in wrong} == {"lost", "damaged"}
    assert drafts(root) == []
    assert len(look(root).damaged) == 1


def test_a_reference_is_read_as_it_was_written(campaign: Campaign, tmp_path: Path) -> None:
    campaign.reference.save(tmp_path / "reference.json")
    assert Reference.load(tmp_path / "reference.json") == campaign.reference
    assert json.loads((tmp_path / "reference.json").read_text())["seconds"] > 0
