"""Step 2: which frames of each trajectory the critic looks at. They are named, not copied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selu.config import FrameSettings
from selu.frames import select_frames, steps_by_episode
from selu.records import Frame, Record
from selu.rounds import Workspace
from selu.store import ArtifactRef, Store, read_table, write_table
from selu.tasks.progress import Meter
from selu.tasks.stages import Made, Shard, Stage, make, read_episodes, read_frames, read_steps, stage_task

__all__ = ["SelectedFrame", "extract_frames", "read_selected_frames"]

FRAMES = Stage(name="frames", version=2, modules=("selu.frames", "selu.worlds.actions"))


class SelectedFrame(Record):
    """A frame that the critic looks at."""

    episode_id: str
    frame_index: int


@stage_task(FRAMES)
def extract_frames(workspace: Workspace, shard: Shard, episodes: ArtifactRef, frames: FrameSettings) -> Made:
    """Choose the frames of a shard's trajectories."""

    def compute(path: Path, report: Meter) -> None:
        store = workspace.store()
        steps = steps_by_episode(read_steps(store, [episodes]))
        chosen = [
            SelectedFrame(episode_id=episode.episode_id, frame_index=index)
            for episode in read_episodes(store, [episodes])
            for index in select_frames(steps.get(episode.episode_id, []), episode.length, frames)
        ]
        write_table(path / "selected_frames.parquet", chosen, SelectedFrame)

    return make(
        workspace,
        FRAMES,
        shard,
        "frames",
        compute,
        config={"frames": frames.model_dump(mode="json")},
        inputs=[episodes],
    )


def read_selected_frames(store: Store, episodes: Sequence[ArtifactRef], frames: Sequence[ArtifactRef]) -> list[Frame]:
    """The chosen frames of recordings, with their pictures."""
    chosen = {
        (row.episode_id, row.frame_index)
        for ref in frames
        for row in read_table(store.path(ref) / "selected_frames.parquet", SelectedFrame)
    }
    return [frame for frame in read_frames(store, episodes) if (frame.episode_id, frame.frame_index) in chosen]
