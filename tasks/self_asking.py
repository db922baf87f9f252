"""Steps 3 and 7: the critic questions itself about every trajectory, and about further claims that balance what it will
learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selu.config import SelfAskingSettings
from selu.contrasts import contrast_claims
from selu.models.base import VisionLanguageModel
from selu.prompting import prompts_digest
from selu.records import Answer, Episode, Frame, Question, Relabel, Verdict
from selu.rounds import Workspace
from selu.store import ArtifactRef, write_table
from selu.tasks.frames import read_selected_frames
from selu.tasks.progress import Meter
from selu.tasks.stages import (
    ENGINE,
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

__all__ = ["ASKING", "ask_about_contrasts", "ask_about_episodes", "write_contrasts"]

ASKING = (
    "selu.questions",
    "selu.self_asking",
    "selu.verdicts",
    "selu.deeds",
    "selu.judging",
    "selu.prompting",
    "selu.frames",
    *ENGINE,
)
"""Modules behind a verdict."""
SELF_ASKING = Stage(name="self-asking", version=3, modules=ASKING, on_gpu=True)
CONTRASTS = Stage(name="contrasts", version=3, modules=("selu.contrasts", *ASKING), on_gpu=True)


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


def write_contrasts(
    path: Path,
    episodes: Sequence[Episode],
    frames: Sequence[Frame],
    verdicts: Sequence[Verdict],
    relabels: Sequence[Relabel],
    critic: VisionLanguageModel,
    self_asking: SelfAskingSettings,
    *,
    instructions: Sequence[str],
    per_episode: int,
    seed: int,
    agree_with_direct: bool,
    report: Meter,
) -> None:
    """Find further claims about frames (:func:`selu.contrasts.contrast_claims`), judge them, and write the judgements."""
    whole = len(episodes)
    claims = contrast_claims(
        episodes,
        frames,
        verdicts,
        relabels,
        critic,
        instructions=instructions,
        per_episode=per_episode,
        seed=seed,
        progress=lambda share: report(int(0.3 * share * whole), whole),
    )
    _write(
        path,
        ask(
            episodes,
            frames,
            critic,
            self_asking,
            claims=claims,
            agree_with_direct=agree_with_direct,
            progress=lambda done, of: report(int(0.3 * of + 0.7 * done), of),
        ),
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
        write_contrasts(
            path,
            known,
            seen,
            read_all(store, judgements, "verdicts", Verdict),
            read_all(store, relabels, "relabels", Relabel),
            critic.load(store),
            self_asking,
            instructions=[episode.instruction for episode in read_episodes(store, everything)],
            per_episode=self_asking.contrasts,
            seed=seed,
            agree_with_direct=agree_with_direct,
            report=report,
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
