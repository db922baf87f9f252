"""Steps 5 and 7: what the critic labelled becomes a dataset version, for itself and for the actor."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow.parquet as pq

from selu.config import DatasetSettings
from selu.errors import ArtifactError, ConfigError, NothingToLearn
from selu.memory import Memory
from selu.prompting import PromptStyle, prompts_digest
from selu.records import Answer, Episode, Frame, Question, Relabel, Verdict
from selu.rounds import Workspace
from selu.store import ArtifactRef, Json, Store, write_table
from selu.tasks.frames import read_selected_frames
from selu.tasks.progress import Meter
from selu.tasks.stages import (
    Made,
    Shard,
    Stage,
    make,
    read_all,
    read_episodes,
    read_frames,
    read_steps,
    stage_task,
)

if TYPE_CHECKING:
    import datasets

    from selu.datasets import DatasetCard

__all__ = [
    "ACTORS_ALONE",
    "corpus_digest",
    "corpus_of",
    "make_actor_dataset",
    "make_critic_dataset",
    "read_dataset",
    "replay_digest",
]

_MODULES = (
    "selu.datasets.rows",
    "selu.datasets.versions",
    "selu.prompting",
    "selu.frames",
    "selu.base_model.packaging",
)
CRITIC_DATASET = Stage(name="critic-dataset", version=3, modules=(*_MODULES, "selu.datasets.for_critic"))
ACTOR_DATASET = Stage(
    name="actor-dataset", version=6, modules=(*_MODULES, "selu.datasets.for_actor", "selu.deeds", "selu.memory")
)


def read_dataset(store: Store, ref: ArtifactRef, config: Literal["actor", "critic"]) -> datasets.Dataset:
    """The rows of a dataset version, in memory and past the datasets library's cache.

    Raises:
        ArtifactError: the artifact is missing or altered, or its rows cannot be read.
    """
    import datasets

    store.verify(ref)
    path = store.path(ref) / "data" / f"{config}-train.parquet"
    try:
        with pq.ParquetFile(path) as file:
            return datasets.Dataset(datasets.table.InMemoryTable(file.read()))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"the dataset {path} cannot be read: {error}") from error


ACTORS_ALONE = ("compositions", "recoveries")
"""Settings of dataset versions that change nothing of the critic's."""


def corpus_of(dataset: DatasetSettings) -> Path:
    """The frozen corpus to rehearse from."""
    from selu.base_model.packaging import REPLAY_FILE

    return dataset.corpus or REPLAY_FILE


def corpus_digest(dataset: DatasetSettings) -> str:
    """Hash of the frozen corpus. Raises ConfigError if it cannot be read."""
    path = corpus_of(dataset)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"the corpus to rehearse from cannot be read ({path}: {error.strerror}); reinstall the project, set "
            "dataset.corpus to another, or set dataset.replay=0 and dataset.corpus_pictures=0 to train without it"
        ) from error


def replay_digest(dataset: DatasetSettings) -> str | None:
    """Hash of the frozen corpus that is rehearsed, None if none is."""
    return None if dataset.replay == 0 else corpus_digest(dataset)


def _replay(dataset: DatasetSettings) -> datasets.Dataset | None:
    if dataset.replay == 0:
        return None
    from selu.base_model.packaging import load_replay, split_replay

    # The rest is kept for the guard of the critic.
    return split_replay(load_replay(corpus_of(dataset)))[0]


def _save(path: Path, rows: datasets.Dataset, config: Literal["actor", "critic"], card: DatasetCard) -> None:
    from selu.datasets import Lineage, lineage, save_dataset_version

    save_dataset_version(path, {config: rows}, card)
    write_table(path / f"{config}_rows.parquet", lineage(rows), Lineage)


def _card(
    who: Literal["actor", "critic"], round_number: int | None, recipe: dict[str, Json], parents: dict[str, str]
) -> DatasetCard:
    from selu.datasets import DatasetCard

    if round_number is None:
        return DatasetCard(
            name=f"selu/{who}-recorded",
            pretty_name=f"SELU {who}, recorded trajectories",
            description=f"Rows for the {who} out of recorded trajectories, as the critic labelled them. Those of the source "
            "`rehearsal` are of the base model's own corpus and have nothing to do with the recordings.",
            round=None,
            parents=parents,
            recipe=recipe,
            license=None,
        )
    learned = {
        "critic": "Verdicts on its own questions, as the critic answered them, to learn from.",
        "actor": "Actions of trajectories that the improved critic accepted, under their own or another instruction.",
    }
    return DatasetCard(
        name=f"selu/{who}-round{round_number}",
        pretty_name=f"SELU {who}, round {round_number}",
        description=learned[who],
        round=round_number,
        parents=parents,
        recipe=recipe,
    )


def _parents(**refs: Sequence[ArtifactRef]) -> dict[str, str]:
    return {
        name if len(listed) == 1 else f"{name} {number + 1}": ref.digest
        for name, listed in refs.items()
        for number, ref in enumerate(listed)
    }


@stage_task(CRITIC_DATASET)
def make_critic_dataset(
    workspace: Workspace,
    shard: Shard,
    round_number: int | None,
    episodes: Sequence[ArtifactRef],
    frames: Sequence[ArtifactRef],
    judgements: Sequence[ArtifactRef],
    relabels: Sequence[ArtifactRef],
    previous: ArtifactRef | None,
    dataset: DatasetSettings,
    style: PromptStyle,
    seed: int,
    pictures: ArtifactRef | None = None,
    on_pictures: Sequence[ArtifactRef] = (),
) -> Made:
    """The critic's dataset version of a round (None: of recordings), out of all shards; `previous` is that of the round
    before, `on_pictures` are judgements on `pictures` of the corpus."""
    recipe: dict[str, Json] = {
        # Of the corpus the content counts, wherever it lies.
        "dataset": dataset.model_dump(mode="json", exclude={"corpus", "corpus_pictures", *ACTORS_ALONE}),
        "replay": replay_digest(dataset),
        "prompts": prompts_digest(),
        "style": style,
        "seed": seed,
        "round": round_number,
    }
    earlier = [previous] if previous is not None and dataset.reuse_previous_rounds else []
    drawn = [] if pictures is None else [pictures]

    def compute(path: Path, report: Meter) -> None:
        from selu.datasets import critic_rows

        store = workspace.store()
        rows = critic_rows(
            read_episodes(store, episodes),
            read_selected_frames(store, episodes, frames),
            read_all(store, [*judgements, *relabels], "questions", Question),
            read_all(store, [*judgements, *relabels], "answers", Answer),
            read_all(store, judgements, "verdicts", Verdict),
            read_all(store, relabels, "relabels", Relabel),
            dataset,
            seed=seed,
            style=style,
            replay=_replay(dataset),
            previous=read_dataset(store, earlier[0], "critic") if earlier else None,
            on_corpus=(
                read_all(store, drawn, "corpus_episodes", Episode),
                read_all(store, drawn, "corpus_frames", Frame),
                read_all(store, on_pictures, "verdicts", Verdict),
            ),
        )
        _refuse_nothing(rows, "critic")
        parents = _parents(
            episodes=episodes,
            judgements=judgements,
            pictures=drawn,
            on_pictures=on_pictures,
            relabels=relabels,
            previous=earlier,
        )
        _save(path, rows, "critic", _card("critic", round_number, recipe, parents))

    return make(
        workspace,
        CRITIC_DATASET,
        shard,
        "critic_dataset",
        compute,
        config=recipe,
        inputs=[*episodes, *frames, *judgements, *relabels, *earlier, *drawn, *on_pictures],
    )


@stage_task(ACTOR_DATASET)
def make_actor_dataset(
    workspace: Workspace,
    shard: Shard,
    round_number: int | None,
    episodes: Sequence[ArtifactRef],
    judgements: Sequence[ArtifactRef],
    relabels: Sequence[ArtifactRef],
    previous: ArtifactRef | None,
    dataset: DatasetSettings,
    memory: Memory,
    style: PromptStyle,
    skill_set: str,
    seed: int,
) -> Made:
    """The actor's dataset version of a round (None: of recordings), out of what the improved critic accepted."""
    recipe: dict[str, Json] = {
        "dataset": dataset.model_dump(mode="json", exclude={"corpus", "corpus_pictures"}),
        "replay": replay_digest(dataset),
        "prompts": prompts_digest(),
        "style": style,
        "skill_set": skill_set,
        "memory": memory.model_dump(mode="json"),
        "seed": seed,
        "round": round_number,
    }
    earlier = [previous] if previous is not None and dataset.reuse_previous_rounds else []

    def compute(path: Path, report: Meter) -> None:
        from selu.datasets import actor_rows

        store = workspace.store()
        rows = actor_rows(
            read_episodes(store, episodes),
            read_steps(store, episodes),
            read_frames(store, episodes),
            read_all(store, judgements, "verdicts", Verdict),
            read_all(store, relabels, "relabels", Relabel),
            dataset,
            seed=seed,
            memory=memory,
            style=style,
            skill_set=skill_set,
            replay=_replay(dataset),
            previous=read_dataset(store, earlier[0], "actor") if earlier else None,
        )
        _refuse_nothing(rows, "actor")
        parents = _parents(episodes=episodes, judgements=judgements, relabels=relabels, previous=earlier)
        _save(path, rows, "actor", _card("actor", round_number, recipe, parents))

    return make(
        workspace,
        ACTOR_DATASET,
        shard,
        "actor_dataset",
        compute,
        config=recipe,
        inputs=[*episodes, *judgements, *relabels, *earlier],
    )


def _refuse_nothing(rows: datasets.Dataset, who: Literal["actor", "critic"]) -> None:
    if len(rows) == 0:
        raise NothingToLearn(
            f"the critic accepted no label that the {who} could learn from; collect more episodes (tasks.episodes, or more "
            "recordings) or accept answers at a lower confidence (self_asking.confidence, hindsight.confidence)"
        )
