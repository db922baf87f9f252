"""Steps 3 and 7: the critic questions itself about every trajectory, and about further claims that balance what it will
learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selu.config import DatasetSettings, SelfAskingSettings
from selu.contrasts import contrast_claims
from selu.memories import memories
from selu.prompting import prompts_digest
from selu.records import Answer, Episode, Frame, Question, Relabel, Verdict
from selu.rounds import Workspace
from selu.store import ArtifactRef, write_table
from selu.tasks.datasets import corpus_digest, rehearsed
from selu.tasks.frames import read_selected_frames
from selu.tasks.progress import Meter
from selu.tasks.stages import (
    Made,
    Model,
    Shard,
    Stage,
    make,
    model_config_of,
    read_all,
    read_episodes,
    read_steps,
    stage_task,
)
from selu.verdicts import ask

__all__ = ["ask_about_contrasts", "ask_about_episodes", "ask_about_memories"]

_MODULES = (
    "selu.questions",
    "selu.self_asking",
    "selu.verdicts",
    "selu.deeds",
    "selu.judging",
    "selu.prompting",
    "selu.frames",
)
SELF_ASKING = Stage(name="self-asking", version=3, modules=_MODULES, on_gpu=True)
CONTRASTS = Stage(name="contrasts", version=3, modules=("selu.contrasts", *_MODULES), on_gpu=True)
MEMORIES = Stage(name="memories", version=1, modules=("selu.memories", "selu.contrasts", *_MODULES), on_gpu=True)
_CLAIMS_A_MEMORY = 8
"""At most: half as many as about an episode, which has several frames."""


def _write(path: Path, rows: tuple[list[Question], list[Answer], list[Verdict]]) -> None:
    questions, answers, verdicts = rows
    write_table(path / "questions.parquet", questions, Question)
    write_table(path / "answers.parquet", answers, Answer)
    write_table(path / "verdicts.parquet", verdicts, Verdict)


@stage_task(SELF_ASKING)
def ask_about_episodes(
    workspace: Workspace,
    shard: Shard,
    episodes: ArtifactRef,
    frames: ArtifactRef,
    critic: Model,
    self_asking: SelfAskingSettings,
    agree_with_direct: bool = False,
) -> Made:
    """Judge a shard's trajectories under their own instructions.

    `agree_with_direct`: the critic's direct verdict must agree; for one that was fine-tuned on verdicts.
    """

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        _write(
            path,
            ask(
                read_episodes(store, [episodes]),
                read_selected_frames(store, [episodes], [frames]),
                critic.load(store),
                self_asking,
                steps=read_steps(store, [episodes]),
                agree_with_direct=agree_with_direct,
                progress=report,
            ),
        )

    return make(
        workspace,
        SELF_ASKING,
        shard,
        "judgements",
        compute,
        config={
            "self_asking": self_asking.model_dump(mode="json"),
            "agree_with_direct": agree_with_direct,
            "critic": model_config_of(critic.settings),
            "prompts": prompts_digest(),
        },
        inputs=[episodes, frames],
        models=[critic],
    )


@stage_task(CONTRASTS)
def ask_about_contrasts(
    workspace: Workspace,
    shard: Shard,
    episodes: ArtifactRef,
    frames: ArtifactRef,
    judgements: Sequence[ArtifactRef],
    relabels: Sequence[ArtifactRef],
    everything: Sequence[ArtifactRef],
    critic: Model,
    self_asking: SelfAskingSettings,
    seed: int,
    agree_with_direct: bool = False,
) -> Made:
    """Judge other frames under the round's instructions, so that every instruction gets labels of both kinds.

    `judgements` and `relabels` are those of this shard, `everything` the episodes of all shards, for their instructions.
    """

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        known = read_episodes(store, [episodes])
        seen = read_selected_frames(store, [episodes], [frames])
        model, whole = critic.load(store), len(known)
        claims = contrast_claims(
            known,
            seen,
            read_all(store, judgements, "verdicts", Verdict),
            read_all(store, relabels, "relabels", Relabel),
            model,
            instructions=[episode.instruction for episode in read_episodes(store, everything)],
            per_episode=self_asking.contrasts,
            seed=seed,
            progress=lambda share: report(int(0.3 * share * whole), whole),
        )
        _write(
            path,
            ask(
                known,
                seen,
                model,
                self_asking,
                claims=claims,
                agree_with_direct=agree_with_direct,
                progress=lambda done, of: report(int(0.3 * of + 0.7 * done), of),
            ),
        )

    return make(
        workspace,
        CONTRASTS,
        shard,
        "judgements",
        compute,
        config={
            "self_asking": self_asking.model_dump(mode="json"),
            "critic": model_config_of(critic.settings),
            "prompts": prompts_digest(),
            "agree_with_direct": agree_with_direct,
            "seed": seed,
        },
        inputs=[episodes, frames, *judgements, *relabels, *everything],
        models=[critic],
    )


@stage_task(MEMORIES)
def ask_about_memories(
    workspace: Workspace,
    shard: Shard,
    dataset: DatasetSettings,
    everything: Sequence[ArtifactRef],
    critic: Model,
    self_asking: SelfAskingSettings,
    seed: int,
) -> Made:
    """Judge instructions on a shard of `dataset.memories` pictures of the corpus; they are stored beside the verdicts.

    `everything` are the round's episodes, for their instructions.
    """

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        known, seen = memories(rehearsed(dataset), dataset.memories, seed)
        known, seen = known[shard.start : shard.stop], seen[shard.start : shard.stop]
        model, whole = critic.load(store), len(known)
        claims = contrast_claims(
            known,
            seen,
            [],
            [],
            model,
            instructions=[episode.instruction for episode in read_episodes(store, everything)],
            per_episode=_CLAIMS_A_MEMORY,
            seed=seed,
            progress=lambda share: report(int(0.3 * share * whole), whole),
        )
        _write(
            path,
            ask(
                known,
                seen,
                model,
                self_asking,
                claims=claims,
                progress=lambda done, of: report(int(0.3 * of + 0.7 * done), of),
            ),
        )
        write_table(path / "memory_episodes.parquet", known, Episode)
        write_table(path / "memory_frames.parquet", seen, Frame)

    return make(
        workspace,
        MEMORIES,
        shard,
        "judgements",
        compute,
        config={
            "memories": dataset.memories,
            "corpus": corpus_digest(dataset),
            "self_asking": self_asking.model_dump(mode="json"),
            "critic": model_config_of(critic.settings),
            "prompts": prompts_digest(),
            "shard": [shard.start, shard.stop],
            "seed": seed,
        },
        inputs=everything,
        models=[critic],
    )
