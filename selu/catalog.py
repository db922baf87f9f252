"""SQL over what the store holds: a DuckDB view for every table, read-only.

Each row carries the ``artifact`` (key) that it comes from, so that ``artifacts`` can be joined for its stage, inputs
and time. Only tables that a whole artifact's manifest lists are read, so nothing half-written or damaged is. Pictures
are left out; read them with :func:`selu.store.read_table`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import duckdb
import pyarrow as pa

from selu import records
from selu.errors import ArtifactError, ConfigError, first_line
from selu.store import Manifest, arrow_schema, manifests

__all__ = ["Catalog", "QueryResult"]

_RECORD_TABLES: dict[str, type[records.Record]] = {
    "tasks": records.Task,
    "episodes": records.Episode,
    "steps": records.Step,
    "frames": records.Frame,
    "corpus_episodes": records.Episode,
    "questions": records.Question,
    "answers": records.Answer,
    "verdicts": records.Verdict,
    "relabels": records.Relabel,
    "oracle_episodes": records.OracleEpisode,
    "oracle_steps": records.OracleStep,
}

_LINEAGE = {
    "source": "VARCHAR",
    "instruction": "VARCHAR",
    "episode_id": "VARCHAR",
    "frame_indices": "BIGINT[]",
    "question_id": "VARCHAR",
    "verdict_id": "VARCHAR",
    "relabel_id": "VARCHAR",
    "actor_revision": "VARCHAR",
    "critic_revision": "VARCHAR",
}

# Tables without a record type: columns of an empty one.
_OTHER_TABLES: dict[str, dict[str, str]] = {
    "critic_rows": _LINEAGE,
    "actor_rows": _LINEAGE,
    "curves": {
        "step": "BIGINT",
        "epoch": "DOUBLE",
        "loss": "DOUBLE",
        "learning_rate": "DOUBLE",
        "grad_norm": "DOUBLE",
        "validation_loss": "DOUBLE",
    },
    "metrics": {
        "run": "VARCHAR",
        "round": "BIGINT",
        "subject": "VARCHAR",
        "phase": "VARCHAR",
        "probe": "VARCHAR",
        "method": "VARCHAR",
        "metric": "VARCHAR",
        "rate": "DOUBLE",
        "n": "BIGINT",
        "low": "DOUBLE",
        "high": "DOUBLE",
    },
}

_OTHER_TABLES["outcomes"] = {
    **{
        name: kind
        for name, kind in _OTHER_TABLES["metrics"].items()
        if name not in ("metric", "rate", "n", "low", "high")
    },
    "item": "VARCHAR",
    "scene": "VARCHAR",
    "kind": "VARCHAR",
    "truth": "BOOLEAN",
    "value": "DOUBLE",
}

_PICTURES = {"image", "images"}


class QueryResult(NamedTuple):
    """Names of the columns, and rows of Python values in their order."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


class Catalog:
    """Views over a store as it is now; make another one to see what came later.

    The views: ``episodes, steps, frames`` (without pictures)``, questions, answers, verdicts, relabels, critic_rows,
    actor_rows, curves, metrics, outcomes``; ``corpus_episodes`` (pictures of the corpus that were judged, as episodes without a
    step); ``artifacts`` (kind, key, digest, stage, created in UTC, seconds, bytes, provenance
    as JSON); and the truth, for a reader's eyes: ``tasks`` (with their goals)``, oracle_episodes, oracle_steps``. A
    view whose table nobody has made yet is empty.

    Args:
        store_root: the store's folder; one that is not there gives empty views.

    Raises:
        ArtifactError: a table that looks whole is no readable Parquet.
    """

    def __init__(self, store_root: Path) -> None:
        found = list(manifests(Path(store_root).absolute()))
        self._connection = duckdb.connect()
        # Queries never leave the machine: DuckDB would otherwise download extensions as it meets their functions.
        self._connection.execute("SET autoinstall_known_extensions = false")
        self._connection.execute("SET TimeZone = 'UTC'")
        self._add_artifacts(found)
        paths = _table_paths(Path(store_root).absolute(), found)
        for name, record_type in _RECORD_TABLES.items():
            self._add_view(name, _sql_types(arrow_schema(record_type)), paths.get(name, []), exact=True)
        for name, columns in _OTHER_TABLES.items():
            self._add_view(name, columns, paths.get(name, []), exact=False)
        self.views: tuple[str, ...] = ("artifacts", *_RECORD_TABLES, *_OTHER_TABLES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the connection."""
        self._connection.close()

    def query(self, sql: str) -> QueryResult:
        """The answer to one query (``SELECT``, ``FROM``, ``WITH``, ``DESCRIBE``, ``SUMMARIZE``, ``SHOW TABLES``).

        Raises:
            ConfigError: the text is not one reading query, or DuckDB refuses it; with DuckDB's own sentence.
        """
        try:
            statements = self._connection.extract_statements(sql)
            if len(statements) != 1:
                raise ConfigError(f"give one query, got {len(statements)}")
            if statements[0].type != duckdb.StatementType.SELECT:
                raise ConfigError(
                    f"the catalog is read-only, and {statements[0].type.name} is not a query; the stages alone write"
                )
            result = self._connection.execute(statements[0])
            return QueryResult([column[0] for column in result.description or []], result.fetchall())
        except duckdb.CatalogException as error:
            raise ConfigError(f"{str(error).strip()}\nTables: {', '.join(self.views)}") from error
        except duckdb.Error as error:
            raise ConfigError(str(error).strip()) from error

    def _add_artifacts(self, found: list[Manifest]) -> None:
        self._connection.execute(
            "CREATE TABLE artifacts (kind VARCHAR, key VARCHAR, digest VARCHAR, stage VARCHAR, created TIMESTAMP, "
            "seconds DOUBLE, bytes BIGINT, provenance JSON)"
        )
        if not found:
            return
        columns: dict[str, list[Any]] = {
            "kind": [manifest.kind for manifest in found],
            "key": [manifest.key for manifest in found],
            "digest": [manifest.digest for manifest in found],
            "stage": [manifest.provenance.get("stage") for manifest in found],
            "created": [manifest.created for manifest in found],
            "seconds": [manifest.seconds for manifest in found],
            "bytes": [manifest.size for manifest in found],
            "provenance": [json.dumps(manifest.provenance, sort_keys=True) for manifest in found],
        }
        # One statement for all: executemany takes a millisecond a row.
        self._connection.register("found", pa.table(columns))
        self._connection.execute(
            "INSERT INTO artifacts SELECT kind, key, digest, stage, created::TIMESTAMPTZ AT TIME ZONE 'UTC', "
            "seconds, bytes, provenance::JSON FROM found"
        )
        self._connection.unregister("found")

    def _add_view(self, name: str, columns: Mapping[str, str], paths: list[Path], *, exact: bool) -> None:
        """A view over Parquet files, or an empty one of the given columns.

        ``exact``: the files have the columns' types (records); otherwise they say themselves which columns they have.
        """
        kept = {column: kind for column, kind in columns.items() if column not in _PICTURES}
        nothing = "SELECT " + ", ".join(
            f"CAST(NULL AS {kind}) AS {_name(column)}" for column, kind in {**kept, "artifact": "VARCHAR"}.items()
        )
        nothing += " WHERE false"
        if not paths:
            self._connection.execute(f"CREATE VIEW {_name(name)} AS {nothing}")
            return
        files = ", ".join(_text(str(path)) for path in paths)
        # The folder that holds a table is named by its artifact's key.
        source = f"read_parquet([{files}], filename = 'artifact', union_by_name = true, hive_partitioning = false)"
        try:
            there = [row[0] for row in self._connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()]
            chosen = ", ".join(_name(column) for column in there if column not in {*_PICTURES, "artifact"})
            rows = f"SELECT {chosen}, parse_path(artifact)[-2] AS artifact FROM {source}"
            self._connection.execute(
                f"CREATE VIEW {_name(name)} AS " + (f"{nothing} UNION ALL BY NAME {rows}" if exact else rows)
            )
        except duckdb.Error as error:
            raise ArtifactError(f"the table {name} cannot be read: {first_line(error)}") from error


def _table_paths(root: Path, found: list[Manifest]) -> dict[str, list[Path]]:
    paths: dict[str, list[Path]] = {}
    for manifest in found:
        base = root / "oracle" if manifest.kind.startswith("oracle") else root
        for file in manifest.files:
            name, dot, suffix = file.name.partition(".")
            if dot and suffix == "parquet" and (name in _RECORD_TABLES or name in _OTHER_TABLES):
                paths.setdefault(name, []).append(base / manifest.kind / manifest.key[:2] / manifest.key / file.name)
    return paths


def _sql_types(schema: pa.Schema) -> dict[str, str]:
    """DuckDB's types for Arrow's."""
    scalars = {"string": "VARCHAR", "int64": "BIGINT", "double": "DOUBLE", "bool": "BOOLEAN", "binary": "BLOB"}
    return {
        field.name: f"{scalars[str(field.type.value_type)]}[]"
        if pa.types.is_list(field.type)
        else scalars[str(field.type)]
        for field in schema
    }


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
