"""One server, one warm process and one undisturbed round for all tests of faults."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign


@pytest.fixture(scope="session")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    """A campaign with its reference made; the undisturbed round's data folder is `campaign.finished`."""
    folder = tmp_path_factory.mktemp("faults")
    made = Campaign(folder / "work", folder / "out", seed=0)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def finished(campaign: Campaign, tmp_path: Path) -> Path:
    """A data folder of the test's own in which the whole round is."""
    return Path(shutil.copytree(campaign.finished, tmp_path / "data"))
