"""Step 3, beside what was played: the critic judges instructions on pictures of its own corpus."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from selu.config import DatasetSettings, SelfAskingSettings
from selu.corpus_pictures import corpus_pictures
from selu.prompting import prompts_digest
from selu.records import Episode, Frame
from selu.rounds import Workspace
from selu.store import ArtifactRef, read_table, write_table
from selu.tasks.datasets import corpus_digest, corpus_of
from selu.tasks.progress import Meter
from selu.tasks.self_asking import ASKING, write_contrasts
from selu.tasks.stages import Made, Model, Shard, Stage, make, model_config_of, read_all, read_episodes, stage_task

__all__ = ["DrawnPictures", "ask_about_corpus_pictures", "draw_corpus_pictures"]

logger = logging.getLogger(__name__)

CORPUS_PICTURES = Stage(
    name="corpus-pictures", version=1, modules=("selu.corpus_pictures", "selu.base_model.packaging")
)
CORPUS_ASKING = Stage(name="corpus-asking", version=1, modules=("selu.contrasts", *ASKING), on_gpu=True)

_CLAIMS = 8
"""About a picture, less the quarter that is for an episode's own instructions: two that seem fulfilled, two of their likes that
do not, two others that do not. Half of what an episode gets, which has several frames."""


class DrawnPictures(Made):
    """Pictures of the corpus."""

    count: int


@stage_task(CORPUS_PICTURES)
def draw_corpus_pictures(
    workspace: Workspace, shard: Shard, dataset: DatasetSettings, count: int, seed: int
) -> DrawnPictures:
    """Draw `count` pictures of the corpus, or as many as there are."""

    def compute(path: Path, report: Meter) -> None:
        from selu.base_model.packaging import load_replay, split_replay

        episodes, frames = corpus_pictures(*split_replay(load_replay(corpus_of(dataset))), count, seed)
        write_table(path / "corpus_episodes.parquet", episodes, Episode)
        write_table(path / "corpus_frames.parquet", frames, Frame)

    made = make(
        workspace,
        CORPUS_PICTURES,
        shard,
        "corpus_pictures",
        compute,
        config={"corpus": corpus_digest(dataset), "count": count, "seed": seed},
    )
    drawn = read_table(workspace.store().path(made.ref) / "corpus_episodes.parquet", Episode)
    if len(drawn) < count:
        logger.info("the corpus has %d pictures, all of which are taken; %d were asked for", len(drawn), count)
    return DrawnPictures(ref=made.ref, cached=made.cached, seconds=made.seconds, count=len(drawn))


@stage_task(CORPUS_ASKING)
def ask_about_corpus_pictures(
    workspace: Workspace,
    shard: Shard,
    pictures: ArtifactRef,
    everything: Sequence[ArtifactRef],
    critic: Model,
    self_asking: SelfAskingSettings,
    seed: int,
) -> Made:
    """Judge instructions on a shard of the pictures: those of the round's episodes (`everything`), and imagined ones."""

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        write_contrasts(
            path,
            read_all(store, [pictures], "corpus_episodes", Episode)[shard.start : shard.stop],
            read_all(store, [pictures], "corpus_frames", Frame)[shard.start : shard.stop],
            [],
            [],
            critic.load(store),
            self_asking,
            instructions=[episode.instruction for episode in read_episodes(store, everything)],
            per_episode=_CLAIMS,
            seed=seed,
            agree_with_direct=False,
            report=report,
        )

    return make(
        workspace,
        CORPUS_ASKING,
        shard,
        "judgements",
        compute,
        config={
            "self_asking": self_asking.model_dump(mode="json", exclude={"contrasts", "deeds"}),
            "claims": _CLAIMS,
            "critic": model_config_of(critic.settings),
            "prompts": prompts_digest(),
            "shard": [shard.start, shard.stop],
            "seed": seed,
        },
        inputs=[pictures, *everything],
        models=[critic],
    )
