"""Step 9, the critic's part: trajectories of a frozen probe are judged. No ground truth comes here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from selu.config import SelfAskingSettings
from selu.frames import FrameTable
from selu.judging import Blind, blinded, direct_verdicts
from selu.prompting import prompts_digest
from selu.records import Episode, Frame, Judgement, Record
from selu.rounds import Workspace
from selu.store import ArtifactRef, Store, read_table, write_table
from selu.tasks.progress import Meter
from selu.tasks.stages import (
    ENGINE,
    Made,
    Model,
    Shard,
    Stage,
    make,
    model_config_of,
    read_episodes,
    read_frames,
    stage_task,
)
from selu.verdicts import ask

__all__ = ["OWN", "ProbeVerdict", "judge_own", "judge_probe", "read_probe"]

JUDGING = Stage(
    name="judging",
    version=3,
    modules=(
        "selu.judging",
        "selu.questions",
        "selu.self_asking",
        "selu.verdicts",
        "selu.prompting",
        "selu.frames",
        *ENGINE,
    ),
    on_gpu=True,
)

OWN_JUDGING = Stage(
    name="own-judging", version=1, modules=("selu.judging", "selu.prompting", "selu.frames", *ENGINE), on_gpu=True
)

OWN = "direct:own"
"""The direct verdict on what the current actor did itself, in place of what several policies recorded once and for all."""

_BLINDS: tuple[Blind, ...] = ("blank", "no_image", "shuffled")


class ProbeVerdict(Record):
    """One judgement of one trajectory of a probe."""

    episode_id: str
    method: str = Field(description="direct, self_asking, or blind:blank, blind:no_image, blind:shuffled")
    verdict: Judgement
    confidence: float


def read_probe(store: Store, probe: ArtifactRef) -> tuple[list[Episode], list[Frame]]:
    """Trajectories of a critic's probe: their episodes and last frames."""
    folder = store.path(probe)
    return (
        read_table(folder / "probe_episodes.parquet", Episode),
        read_table(folder / "probe_frames.parquet", Frame),
    )


@stage_task(JUDGING)
def judge_probe(
    workspace: Workspace,
    shard: Shard,
    probe: ArtifactRef,
    critic: Model,
    self_asking: SelfAskingSettings,
    seed: int,
) -> Made:
    """Judge a probe directly, by self-asking, and blindly."""

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        episodes, frames = read_probe(store, probe)
        table = FrameTable(frames)
        model = critic.load(store)
        items = [((table.picture(row.episode_id, row.length),), row.instruction) for row in episodes]
        ways = [("direct", items)] + [(f"blind:{blind}", blinded(items, blind, seed)) for blind in _BLINDS]
        rows: list[ProbeVerdict] = []
        for number, (method, seen) in enumerate(ways):
            for episode, (verdict, confidence) in zip(episodes, direct_verdicts(seen, model), strict=True):
                rows.append(
                    ProbeVerdict(episode_id=episode.episode_id, method=method, verdict=verdict, confidence=confidence)
                )
            report(number + 1, len(ways) + 1)
        _, _, verdicts = ask(episodes, frames, model, self_asking)
        rows += [
            ProbeVerdict(
                episode_id=verdict.episode_id,
                method="self_asking",
                verdict=verdict.verdict,
                confidence=verdict.confidence,
            )
            for verdict in verdicts
        ]
        write_table(path / "probe_verdicts.parquet", rows, ProbeVerdict)

    return make(
        workspace,
        JUDGING,
        shard,
        "probe_judgements",
        compute,
        config={
            "self_asking": self_asking.model_dump(mode="json"),
            "critic": model_config_of(critic.settings),
            "prompts": prompts_digest(),
            "seed": seed,
        },
        inputs=[probe],
        models=[critic],
    )


@stage_task(OWN_JUDGING)
def judge_own(workspace: Workspace, shard: Shard, episodes: Sequence[ArtifactRef], critic: Model) -> Made:
    """Judge an actor's own recordings directly, each by its last frame."""

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        known, table = read_episodes(store, episodes), FrameTable(read_frames(store, episodes))
        items = [((table.picture(row.episode_id, row.length),), row.instruction) for row in known]
        rows = [
            ProbeVerdict(episode_id=row.episode_id, method=OWN, verdict=verdict, confidence=confidence)
            for row, (verdict, confidence) in zip(known, direct_verdicts(items, critic.load(store)), strict=True)
        ]
        write_table(path / "probe_verdicts.parquet", rows, ProbeVerdict)

    return make(
        workspace,
        OWN_JUDGING,
        shard,
        "probe_judgements",
        compute,
        config={"critic": model_config_of(critic.settings), "prompts": prompts_digest()},
        inputs=list(episodes),
        models=[critic],
    )
