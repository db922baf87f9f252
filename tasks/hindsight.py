"""Steps 4 and 7: trajectories that failed get the instruction that they did achieve."""

from __future__ import annotations

from pathlib import Path

from selu.config import HindsightSettings, SelfAskingSettings
from selu.hindsight import relabel
from selu.prompting import prompts_digest
from selu.records import Answer, Question, Relabel, Verdict
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

__all__ = ["relabel_episodes"]

HINDSIGHT = Stage(
    name="hindsight",
    version=3,
    modules=(
        "selu.hindsight",
        "selu.questions",
        "selu.self_asking",
        "selu.verdicts",
        "selu.deeds",
        "selu.judging",
        "selu.prompting",
        "selu.frames",
        *ENGINE,
    ),
    on_gpu=True,
)


@stage_task(HINDSIGHT)
def relabel_episodes(
    workspace: Workspace,
    shard: Shard,
    episodes: ArtifactRef,
    frames: ArtifactRef,
    judgements: ArtifactRef,
    critic: Model,
    hindsight: HindsightSettings,
    self_asking: SelfAskingSettings,
    agree_with_direct: bool = False,
) -> Made:
    """Relabel a shard's trajectories that were not judged done."""

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        questions, answers, relabels = relabel(
            read_episodes(store, [episodes]),
            read_steps(store, [episodes]),
            read_selected_frames(store, [episodes], [frames]),
            read_all(store, [judgements], "verdicts", Verdict),
            critic.load(store),
            hindsight,
            self_asking,
            agree_with_direct=agree_with_direct,
            progress=report,
        )
        write_table(path / "questions.parquet", questions, Question)
        write_table(path / "answers.parquet", answers, Answer)
        write_table(path / "relabels.parquet", relabels, Relabel)

    return make(
        workspace,
        HINDSIGHT,
        shard,
        "relabels",
        compute,
        config={
            "hindsight": hindsight.model_dump(mode="json"),
            "self_asking": self_asking.model_dump(mode="json"),
            "agree_with_direct": agree_with_direct,
            "critic": model_config_of(critic.settings),
            "prompts": prompts_digest(),
        },
        inputs=[episodes, frames, judgements],
        models=[critic],
    )
