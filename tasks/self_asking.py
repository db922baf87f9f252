"""Steps 3 and 7: the critic questions itself about every trajectory, and about further claims that balance what it will
learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selu.config import SelfAskingSettings
from selu.prompting import prompts_digest
from selu.records import Answer, Question, Relabel, Verdict
from selu.rounds import Workspace
from selu.self_asking import ask, contrast_claims
from selu.store import ArtifactRef, write_table
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
    stage_task,
)

__all__ = ["ask_about_contrasts", "ask_about_episodes"]

_MODULES = ("selu.self_asking", "selu.judging", "selu.prompting", "selu.frames")
SELF_ASKING = Stage(name="self-asking", version=1, modules=_MODULES)
CONTRASTS = Stage(name="contrasts", version=1, modules=_MODULES)

CONTRASTS_PER_EPISODE = 4
"""Two of an episode's own frames and two foreign instructions: about as many labels again as hindsight brings, at the
cost of some tens of questions an episode."""


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
    critic: Model,
    self_asking: SelfAskingSettings,
    seed: int,
) -> Made:
    """Judge other frames and other episodes' instructions, so that every instruction gets labels of both kinds.

    `judgements` and `relabels` are those of all shards: what was achieved anywhere is put to this shard's episodes.
    """

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        known = read_episodes(store, [episodes])
        seen = read_selected_frames(store, [episodes], [frames])
        claims = contrast_claims(
            known,
            seen,
            read_all(store, judgements, "verdicts", Verdict),
            read_all(store, relabels, "relabels", Relabel),
            per_episode=CONTRASTS_PER_EPISODE,
            seed=seed,
        )
        _write(path, ask(known, seen, critic.load(store), self_asking, claims=claims, progress=report))

    return make(
        workspace,
        CONTRASTS,
        shard,
        "judgements",
        compute,
        config={
            "self_asking": self_asking.model_dump(mode="json"),
            "per_episode": CONTRASTS_PER_EPISODE,
            "critic": model_config_of(critic.settings),
            "prompts": prompts_digest(),
            "seed": seed,
        },
        inputs=[episodes, frames, *judgements, *relabels],
        models=[critic],
    )
