"""Training rows: their form, what they are made of, and how they are balanced and put together.

Rows have the form that TRL trains on with a loss on the completion only: `prompt` (one user turn), `completion` (one
assistant turn) and `images`; beside them stands what each row is made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import datasets
import numpy as np
from pydantic import Field

from selu.config import DatasetSettings
from selu.corpus_pictures import CORPUS
from selu.errors import ArtifactError
from selu.records import Episode, Record
from selu.worlds.tasks import verbs_of

__all__ = ["FEATURES", "REHEARSAL", "Lineage", "Row", "assemble", "lineage", "own_room", "rank", "take"]

REHEARSAL = "rehearsal"

_TURN = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})

FEATURES = datasets.Features(
    {
        "prompt": _TURN,
        "completion": _TURN,
        "images": datasets.List(datasets.Image()),
        "source": datasets.Value("string"),
        "instruction": datasets.Value("string"),
        "scene": datasets.Value("string"),
        "task_id": datasets.Value("string"),
        "episode_id": datasets.Value("string"),
        "frame_indices": datasets.List(datasets.Value("int64")),
        "question_id": datasets.Value("string"),
        "verdict_id": datasets.Value("string"),
        "relabel_id": datasets.Value("string"),
        "critic": datasets.Value("string"),
        "actor": datasets.Value("string"),
    }
)


class Lineage(Record):
    """What one training row is made of; ids that do not apply are empty."""

    row: int
    source: str = Field(
        description="verdict, relabel, before_relabel, before_deed, question, asking, corpus, step, start, composed, recovery, "
        "done or rehearsal"
    )
    instruction: str
    scene: str
    task_id: str
    episode_id: str
    frame_indices: tuple[int, ...]
    question_id: str
    verdict_id: str
    relabel_id: str
    critic: str = Field(description="revision of the model that labelled the row")
    actor: str = Field(description="revision of the policy that played the episode")
    prompt: str
    completion: str


@dataclass(frozen=True)
class Row:
    """A training row before it becomes a column."""

    prompt: str
    completion: str
    image: bytes
    source: str
    episode: Episode
    instruction: str
    frame_index: int
    critic: str
    question_id: str = ""
    verdict_id: str = ""
    relabel_id: str = ""

    @property
    def sight(self) -> tuple[str, str]:
        """What a model is shown: the same sight must not be labelled in two ways."""
        return self.prompt, hashlib.sha256(self.image).hexdigest()

    @property
    def deed(self) -> str:
        """The verbs of the instruction."""
        return verbs_of(self.instruction)

    def columns(self) -> dict[str, Any]:
        return {
            "prompt": [{"role": "user", "content": self.prompt}],
            "completion": [{"role": "assistant", "content": self.completion}],
            "images": [{"bytes": self.image, "path": None}],
            "source": self.source,
            "instruction": self.instruction,
            "scene": self.episode.scene,
            "task_id": self.episode.task_id,
            "episode_id": self.episode.episode_id,
            "frame_indices": [self.frame_index],
            "question_id": self.question_id,
            "verdict_id": self.verdict_id,
            "relabel_id": self.relabel_id,
            "critic": self.critic,
            "actor": self.episode.policy,
        }


def rank(seed: int, *parts: object) -> str:
    """A sort key that looks drawn at random, yet depends on nothing but the row and the seed."""
    return hashlib.sha256(json.dumps([seed, *parts]).encode()).hexdigest()


def take(units: Iterable[Sequence[Row]], limit: int) -> list[Row]:
    """Whole units until the next would go beyond `limit` rows."""
    taken: list[Row] = []
    for unit in units:
        if len(taken) + len(unit) <= limit:
            taken.extend(unit)
    return taken


def own_room(settings: DatasetSettings) -> int:
    return int(settings.max_rows * (1 - settings.replay))


def _plain(dataset: datasets.Dataset, indices: Sequence[int], source: str | None) -> list[dict[str, Any]]:
    """Rows of another dataset in our columns; `source` overrides where they say they come from."""
    undecoded = dataset.select(indices).cast_column("images", datasets.List(datasets.Image(decode=False)))
    rows = []
    for given in undecoded:
        row: dict[str, Any] = {name: [] if name == "frame_indices" else "" for name in FEATURES}
        row.update((name, value) for name, value in cast(dict[str, Any], given).items() if name in FEATURES)
        if any(image["bytes"] is None for image in row["images"]):
            raise ArtifactError("a dataset to rehearse from must embed its pictures, got a path to one")
        row["images"] = [{"bytes": image["bytes"], "path": None} for image in row["images"]]
        row["source"] = source or row["source"]
        rows.append(row)
    return rows


def assemble(
    own: Sequence[Row],
    settings: DatasetSettings,
    seed: int,
    replay: datasets.Dataset | None,
    previous: datasets.Dataset | None,
    beside: Sequence[Row] = (),
) -> datasets.Dataset:
    """Own rows, earlier ones and rehearsal in one seeded order; rows `beside` them count for no limit and no share."""
    rows = [row.columns() for row in own]
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    if previous is not None and settings.reuse_previous_rounds:
        kept = [index for index, source in enumerate(previous["source"]) if source not in (REHEARSAL, CORPUS)]
        kept = sorted(generator.permutation(kept)[: max(0, own_room(settings) - len(rows))].tolist())
        rows += _plain(previous, kept, None)
    if replay is not None and settings.replay > 0:
        wanted = settings.max_rows
        if settings.replay < 1:
            wanted = round(len(rows) * settings.replay / (1 - settings.replay))
        wanted = min(wanted, settings.max_rows - len(rows), len(replay))
        rows += _plain(replay, sorted(generator.permutation(len(replay))[:wanted].tolist()), REHEARSAL)
    rows += [row.columns() for row in beside]
    order = generator.permutation(len(rows))
    columns = {name: [rows[index][name] for index in order] for name in FEATURES}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def lineage(dataset: datasets.Dataset) -> list[Lineage]:
    """What each row of a dataset version is made of, without its pictures."""
    slim = dataset.remove_columns(["images"])
    rows = []
    for number, given in enumerate(slim):
        row = cast(dict[str, Any], given)
        row["prompt"], row["completion"] = row["prompt"][0]["content"], row["completion"][0]["content"]
        rows.append(Lineage(row=number, **row))
    return rows
