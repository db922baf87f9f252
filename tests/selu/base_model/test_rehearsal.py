"""A corpus to rehearse from, of a base model of one's own."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selu.base_model.packaging import REPLAY_FILE, load_replay
from selu.config import DatasetSettings, load_settings
from selu.errors import ConfigError
from selu.tasks.datasets import _replay, replay_digest


def _few(path: Path, rows: int = 40, without: str = "") -> Path:
    table = pq.read_table(REPLAY_FILE).slice(0, rows)
    pq.write_table(table.drop_columns([without]) if without else table, path)
    return path


def test_rows_of_ones_own_corpus_are_rehearsed(tmp_path: Path) -> None:
    mine = _few(tmp_path / "corpus.parquet", without="scene")
    settings = DatasetSettings(corpus=mine)
    rehearsed = _replay(settings)
    assert rehearsed is not None
    assert 30 <= len(rehearsed) < 40  # but for what the guard keeps back
    assert replay_digest(settings) != replay_digest(DatasetSettings())
    # What counts is the content, not where it lies.
    copy = Path(tmp_path / "copy.parquet")
    copy.write_bytes(mine.read_bytes())
    assert replay_digest(settings) == replay_digest(DatasetSettings(corpus=copy))


def test_a_corpus_need_not_say_of_what_kind_its_rows_are(tmp_path: Path) -> None:
    assert set(load_replay(_few(tmp_path / "corpus.parquet", without="kind"))["kind"]) == {""}


def test_what_is_no_corpus_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a Parquet file with the columns prompt, completion and images"):
        load_replay(_few(tmp_path / "corpus.parquet", without="images"))
    (tmp_path / "text.parquet").write_text("prompt")
    with pytest.raises(
        ConfigError, match=r"dataset\.corpus to another, or dataset\.replay=0 and dataset\.corpus_pictures=0"
    ):
        load_replay(tmp_path / "text.parquet")
    pq.write_table(pa.table({"prompt": [1], "completion": ["a"], "images": ["b"]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match="must be a Parquet file"):
        load_replay(tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match=r"is no Parquet file; name one with prompt, completion and images"):
        load_settings(None, [f"dataset.corpus={tmp_path / 'text.parquet'}"])
    with pytest.raises(ConfigError, match=r"dataset\.corpus: no such file"):
        load_settings(None, [f"dataset.corpus={tmp_path / 'none.parquet'}"])
