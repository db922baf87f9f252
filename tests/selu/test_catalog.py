"""SQL over a store: empty, filled, growing, damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selu.catalog import Catalog
from selu.errors import ArtifactError, ConfigError
from selu.records import Answer, Condition, Episode, Frame, OracleEpisode, Setup, Task
from selu.store import ArtifactRef, Store, artifact_key, write_table


def episode(number: int) -> Episode:
    return Episode(
        episode_id=f"e{number}",
        task_id="t",
        scene="FloorPlan21",
        instruction="open the fridge",
        seed=number,
        policy="base",
        length=3,
        finish_reason="done",
    )


def store_episodes(store: Store, shard: int) -> ArtifactRef:
    key = artifact_key("rollout", 1, {"shard": shard}, [])
    with store.create("episodes", key, {"stage": "rollout", "config": {"shard": shard}}) as draft:
        write_table(draft.path / "episodes.parquet", [episode(10 * shard + n) for n in range(4)], Episode)
        write_table(draft.path / "frames.parquet", [Frame(episode_id="e0", frame_index=0, image=b"png")], Frame)
    with store.create_oracle("oracle", key, {"stage": "rollout"}) as truth:
        write_table(
            truth.path / "oracle_episodes.parquet",
            [OracleEpisode(episode_id=f"e{10 * shard + n}", success=n == 0) for n in range(4)],
            OracleEpisode,
        )
    return draft.ref


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "it's a store")


@pytest.mark.parametrize("exists", [True, False])
def test_every_view_is_there_before_anything_was_made(tmp_path: Path, exists: bool) -> None:
    root = tmp_path / "store"
    if exists:
        Store(root)
    with Catalog(root) as catalog:
        for view in catalog.views:
            columns, rows = catalog.query(f"SELECT * FROM {view}")
            assert rows == []
            assert "artifact" in columns or view == "artifacts"
        assert catalog.query("SELECT sum(length), max(instruction) FROM episodes").rows == [(None, None)]
        assert catalog.query("SELECT avg(rate) FROM metrics WHERE round = 1 AND subject = 'actor'").rows == [(None,)]
        assert catalog.query("SELECT instruction, len(frame_indices) FROM actor_rows").rows == []
        assert "image" not in catalog.query("FROM frames").columns
    assert root.exists() == exists


def test_rows_of_all_shards_with_their_lineage(store: Store) -> None:
    first, second = store_episodes(store, 0), store_episodes(store, 1)
    with Catalog(store.root) as catalog:
        assert catalog.query("SELECT artifact, count(*) FROM episodes GROUP BY 1 ORDER BY min(seed)").rows == [
            (first.key, 4),
            (second.key, 4),
        ]
        assert catalog.query(
            "SELECT e.episode_id FROM episodes e JOIN artifacts a ON a.key = e.artifact AND a.kind = 'episodes' "
            "WHERE (a.provenance->>'$.config.shard') = '1' ORDER BY 1 LIMIT 1"
        ).rows == [("e10",)]
        assert catalog.query("SELECT avg(success::INT) FROM episodes JOIN oracle_episodes USING (episode_id)").rows == [
            (0.25,)
        ]
        assert catalog.query("FROM frames").columns == ["episode_id", "frame_index", "artifact"]
        assert catalog.query("SELECT kind, stage, bytes > 0 FROM artifacts ORDER BY kind, key").rows == [
            ("episodes", "rollout", True),
            ("episodes", "rollout", True),
            ("oracle", "rollout", True),
            ("oracle", "rollout", True),
        ]
        assert catalog.query("SELECT count(*) FROM artifacts WHERE now()::TIMESTAMP - created < '1 hour'").rows == [
            (4,)
        ]
        assert catalog.query("SELECT count(*) FROM answers").rows == [(0,)]


def test_nested_fields_are_json(store: Store) -> None:
    task = Task(
        task_id="t",
        scene="FloorPlan21",
        kind="pick_up",
        instruction="pick up the mug",
        goal=(Condition(predicate="held", object_type="Mug"),),
        setup=Setup(spawn_seed=3, position=(0.0, 0.9, 1.0), rotation=90.0),
    )
    with store.create_oracle("oracle_tasks", artifact_key("tasks", 1, {}, []), {"stage": "tasks"}) as draft:
        write_table(draft.path / "tasks.parquet", [task], Task)
    with Catalog(store.root) as catalog:
        assert catalog.query("SELECT goal->0->>'object_type', (setup->>'spawn_seed')::INT FROM tasks").rows == [
            ("Mug", 3)
        ]


def test_training_rows_and_metrics_show_what_their_makers_wrote(store: Store) -> None:
    with store.create("actor_dataset", artifact_key("actor_dataset", 1, {}, []), {"stage": "dataset"}) as draft:
        rows = {"prompt": [[{"role": "user"}]], "images": [[b"png"]], "instruction": ["x"], "frame_indices": [[1, 2]]}
        pq.write_table(pa.table(rows), draft.path / "actor_rows.parquet")
    with store.create("metrics", artifact_key("metrics", 1, {}, []), {"stage": "evaluation"}) as draft:
        pq.write_table(pa.table({"round": [1], "rate": [0.5], "n": [200]}), draft.path / "metrics.parquet")
    with Catalog(store.root) as catalog:
        columns, found = catalog.query("FROM actor_rows")
        assert columns == ["prompt", "instruction", "frame_indices", "artifact"]
        assert found[0][1:3] == ("x", [1, 2])
        assert catalog.query("SELECT round, rate, n FROM metrics").rows == [(1, 0.5, 200)]


def test_half_written_and_damaged_artifacts_are_not_read(store: Store) -> None:
    damaged = store_episodes(store, 0)
    store_episodes(store, 1)
    table = store.path(damaged) / "episodes.parquet"
    os.truncate(table, table.stat().st_size - 10)
    with store.create("episodes", artifact_key("rollout", 1, {"shard": 2}, []), {}) as draft:
        write_table(draft.path / "episodes.parquet", [episode(99)], Episode)
        with Catalog(store.root) as catalog:
            assert catalog.query("SELECT count(*), min(seed) FROM episodes").rows == [(4, 10)]
    with Catalog(store.root) as catalog:
        assert catalog.query("SELECT count(*), max(seed) FROM episodes").rows == [(5, 99)]


def test_table_that_is_no_parquet_is_told(store: Store) -> None:
    with store.create("judgements", artifact_key("judge", 1, {}, []), {}) as draft:
        (draft.path / "answers.parquet").write_text("not a table")
    with pytest.raises(ArtifactError, match="the table answers cannot be read"):
        Catalog(store.root)


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT * FROM episode", "Tables: artifacts, tasks, episodes"),
        ("SELECT nothing FROM episodes", "nothing"),
        ("SELEC 1", "SELEC"),
        ("", "give one query, got 0"),
        ("SELECT 1; SELECT 2", "give one query, got 2"),
        ("DROP TABLE artifacts", "read-only"),
        ("DELETE FROM artifacts", "read-only"),
        ("COPY (SELECT 1) TO 'out.csv'", "read-only"),
        ("EXPLAIN ANALYZE DELETE FROM artifacts", "read-only"),
        ("INSTALL httpfs", "read-only"),
    ],
)
def test_what_is_no_query_is_refused(
    store: Store, sql: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with Catalog(store.root) as catalog:
        with pytest.raises(ConfigError, match=says):
            catalog.query(sql)
        assert catalog.query("SELECT 1").rows == [(1,)]
        assert ("artifacts",) in catalog.query("SHOW TABLES").rows
    assert not (tmp_path / "out.csv").exists()


def test_large_tables_are_answered(store: Store) -> None:
    answers = [Answer(question_id=f"q{n}", text="yes", confidence=n / 50_000, critic="c") for n in range(50_000)]
    with store.create("judgements", artifact_key("judge", 1, {}, []), {"stage": "judge"}) as draft:
        write_table(draft.path / "answers.parquet", answers, Answer)
    with Catalog(store.root) as catalog:
        assert catalog.query("SELECT count(*), round(avg(confidence), 2) FROM answers").rows == [(50_000, 0.5)]
