"""What the rounds of one run left: everything that figures of a comparison are made of.

It is read from the store, or from a *record*: a folder of some hundred kilobytes that can be copied, committed and
published, while pictures and adapters stay where they were made. So a comparison can be made in many sittings and on
many machines, and drawn again by whoever has the records alone.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from selu.errors import ArtifactError, first_line
from selu.evaluation import ItemOutcome, MetricRow
from selu.rounds import Round, digests, round_metrics, why_stopped
from selu.store import ArtifactRef, Store, read_table, write_table

__all__ = ["CORPUS", "PICTURED", "PROMPTS", "SPENT", "ItemKey", "RunRecord", "read_records", "record_run"]

ItemKey = tuple[str, str, str, str]
"""subject, probe, method, item"""

PROMPTS, CORPUS, PICTURED = "prompts", "replay", "corpus"
"""What a recipe holds beside stages, by its names in artifacts' configurations."""

_FACTS, _OUTCOMES, _METRICS = "run.json", "outcomes.parquet", "metrics.parquet"
_TOKENS = ("read", "written", "trained")
SPENT = ("environment_steps", *(f"tokens_{name}" for name in _TOKENS))
"""What a budget is made of."""


class RunRecord(BaseModel):
    """A run as far as it has come."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(description="name of the run's folders, which its settings give it")
    rounds: int = Field(ge=1, description="finished rounds")
    stopped: str | None = Field(description="why self-learning stopped itself, if it did")
    base_models: dict[str, str] = Field(description="revisions of actor and critic before any learning")
    digests: tuple[dict[str, str | None], ...] = Field(
        description="of each round: hashes of dataset versions and adapters"
    )
    budgets: tuple[dict[str, float | None], ...] = Field(
        description="environment steps and tokens up to each round, evaluation left out; None where they are unknown"
    )
    recipe: dict[str, int | str] = Field(
        description="versions of the stages that made and measured it, digests of prompts and rehearsed corpus"
    )
    outcomes: tuple[ItemOutcome, ...] = Field(exclude=True, repr=False)
    metrics: tuple[MetricRow, ...] = Field(exclude=True, repr=False)

    def up_to(self, number: int) -> RunRecord:
        """The same run as it was after so many rounds."""
        if number >= self.rounds:
            return self
        changes = {
            "rounds": number,
            "stopped": None,
            "digests": self.digests[:number],
            "budgets": self.budgets[:number],
            "outcomes": tuple(row for row in self.outcomes if row.round <= number),
            "metrics": tuple(row for row in self.metrics if row.round <= number),
        }
        return self.model_copy(update=changes)

    def base(self) -> dict[ItemKey, ItemOutcome]:
        """What the base model came to on every item; scripted policies are among the methods."""
        return self._of_phase(1, "before")

    def reaches(self, number: int) -> bool:
        """Whether there is something to say of a round: a run that stopped itself keeps its models from then on."""
        return number <= self.rounds or self.stopped is not None

    def after(self, number: int) -> dict[ItemKey, ItemOutcome]:
        """What the models after a round came to."""
        return self._of_phase(min(number, self.rounds), "after")

    def metrics_of(self, number: int) -> list[MetricRow]:
        """Figures of one round; none of a round that it does not have."""
        return [row for row in self.metrics if row.round == number]

    def budget(self, number: int) -> dict[str, float]:
        """What learning took up to a round (to the last one, if there are fewer); NaN where that is unknown."""
        spent = self.budgets[min(number, self.rounds) - 1]
        return {name: math.nan if value is None else value for name, value in spent.items()}

    def _of_phase(self, number: int, phase: str) -> dict[ItemKey, ItemOutcome]:
        return {
            (row.subject, row.probe, row.method, row.item): row
            for row in self.outcomes
            if row.round == number and row.phase == phase
        }

    def write(self, folder: Path) -> None:
        """Write the record as a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_table(folder / _OUTCOMES, self.outcomes, ItemOutcome)
        write_table(folder / _METRICS, self.metrics, MetricRow)
        facts = self.model_dump(mode="json")
        (folder / _FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def record_run(store: Store, key: str, rounds: Sequence[Round]) -> RunRecord:
    """What rounds 1, 2, ... of a run left in the store.

    Raises:
        ArtifactError: figures of a finished round are no longer there.
    """
    outcomes = [row for item in rounds for row in _outcomes(store, item)]
    return RunRecord(
        key=key,
        rounds=len(rounds),
        stopped=why_stopped(rounds),
        base_models={who: rounds[0].revisions[f"{who}_before"] for who in ("actor", "critic")},
        digests=tuple(digests(item) for item in rounds),
        budgets=tuple(_budgets(store, rounds)),
        recipe=_recipe(store, rounds),
        # What was before a later round is what was after the one before it.
        outcomes=tuple(row for row in outcomes if row.phase == "after" or (row.phase, row.round) == ("before", 1)),
        metrics=tuple(row for item in rounds for row in round_metrics(store, item)),
    )


def read_records(folder: Path) -> dict[str, RunRecord]:
    """The records in the folders below `folder`, by their keys; none if it does not exist.

    Raises:
        ArtifactError: one is incomplete or cannot be read.
    """
    found = {}
    for path in sorted(folder.glob(f"*/{_FACTS}")):
        try:
            facts: Any = json.loads(path.read_text(encoding="utf-8"))
            record = RunRecord(
                **facts,
                outcomes=tuple(read_table(path.with_name(_OUTCOMES), ItemOutcome)),
                metrics=tuple(read_table(path.with_name(_METRICS), MetricRow)),
            )
        except (OSError, ValueError, TypeError, ArtifactError) as error:
            raise ArtifactError(
                f"the record of a run in {path.parent} cannot be read; delete that folder, or fetch it again: "
                f"{first_line(error)}"
            ) from error
        if not record.rounds == len(record.digests) == len(record.budgets):
            raise ArtifactError(
                f"the record of a run in {path.parent} has {record.rounds} rounds and budgets of {len(record.budgets)}; "
                "delete that folder, or fetch it again"
            )
        found[record.key] = record
    return found


def _outcomes(store: Store, finished: Round) -> list[ItemOutcome]:
    rows: list[ItemOutcome] = []
    for ref in finished.metrics:
        path = store.path(ref) / _OUTCOMES
        if path.exists():
            rows += read_table(path, ItemOutcome)
    if not rows:
        raise ArtifactError(
            f"{finished.run}, round {finished.round}, was evaluated by an earlier version that kept no outcome of single "
            "items; run it again (finished stages are reused)"
        )
    return rows


def _refs(rounds: Sequence[Round]) -> list[list[ArtifactRef]]:
    """Of each round what its learning made, each artifact once: one that several stages found was made once."""
    seen: set[tuple[str, str]] = set()
    made: list[list[ArtifactRef]] = []
    for item in rounds:
        made.append([])
        for ref in (ref for stage in item.stages if stage.name != "evaluation" for ref in stage.artifacts):
            if (ref.kind, ref.key) not in seen:
                seen.add((ref.kind, ref.key))
                made[-1].append(ref)
    return made


def _recipe(store: Store, rounds: Sequence[Round]) -> dict[str, int | str]:
    found: dict[str, set[int | str]] = defaultdict(set)
    for ref in {ref for item in rounds for stage in item.stages for ref in stage.artifacts}:
        made: dict[str, Any] = dict(store.manifest(ref).provenance)
        if "version" in made:
            found[made["stage"]].add(made["version"])
        for name in (PROMPTS, CORPUS, PICTURED):
            if digest := (made.get("config") or {}).get(name):
                found[name].add(digest)
    # A run of several recipes is of none.
    return {
        name: values.pop() if len(values) == 1 else " and ".join(sorted(map(str, values)))
        for name, values in sorted(found.items())
    }


def _budgets(store: Store, rounds: Sequence[Round]) -> list[dict[str, float | None]]:
    """What the learning of a run took up to each round, evaluation left out."""
    spent = dict.fromkeys(SPENT, 0.0)
    found: list[dict[str, float | None]] = []
    for refs in _refs(rounds):
        for ref in refs:
            for name, value in _spent_on(store, ref).items():
                spent[name] += value
        found.append({name: value if math.isfinite(value) else None for name, value in spent.items()})
    return found


def _spent_on(store: Store, ref: ArtifactRef) -> Mapping[str, float]:
    provenance = store.manifest(ref).provenance
    tokens: dict[str, Any] | None = provenance.get("tokens")
    if tokens is None and not provenance.get("models"):
        tokens = {}
    spent = {f"tokens_{name}": math.nan if tokens is None else float(tokens.get(name, 0)) for name in _TOKENS}
    if ref.kind == "episodes":
        column = pq.read_table(store.path(ref) / "episodes.parquet", columns=["length"]).column("length")
        spent["environment_steps"] = float(sum(column.to_pylist()))
    return spent
