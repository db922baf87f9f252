"""Trajectories from elsewhere, in place of step 1: what a folder holds becomes episodes like a rollout's, without truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selu.recorded import Recorded, read_recorded
from selu.records import Episode, Frame, Step
from selu.rounds import Workspace
from selu.store import write_table
from selu.tasks.progress import Meter
from selu.tasks.stages import Made, Shard, Stage, make, stage_task

__all__ = ["take_recorded"]

RECORDED = Stage(name="recorded", version=2, modules=("selu.recorded", "selu.frames", "selu.worlds.actions"))


@stage_task(RECORDED)
def take_recorded(workspace: Workspace, shard: Shard, recorded: Sequence[Recorded], skill_set: str) -> Made:
    """Take a shard's recorded episodes into the store."""

    def compute(path: Path, report: Meter) -> None:
        episodes, steps, frames = read_recorded(recorded, skill_set)
        write_table(path / "episodes.parquet", episodes, Episode)
        write_table(path / "steps.parquet", steps, Step)
        write_table(path / "frames.parquet", frames, Frame)

    return make(
        workspace,
        RECORDED,
        shard,
        "episodes",
        compute,
        config={"episodes": [item.digest for item in recorded], "skill_set": skill_set},
    )
