"""Which frames of a trajectory the critic looks at, and how a picture is kept in a row."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selu.config import FrameSettings
from selu.errors import ArtifactError
from selu.records import Frame, Step
from selu.worlds.actions import read_action

__all__ = [
    "FrameTable",
    "Picture",
    "decode_picture",
    "encode_picture",
    "is_interaction",
    "select_frames",
    "steps_by_episode",
]

Picture = NDArray[np.uint8]

# What only turns or shifts the agent, or ends the episode. Walking up to a thing counts: it shows the thing from near by.
_NOT_INTERACTIONS = frozenset({"MoveAhead", "MoveBack", "RotateLeft", "RotateRight", "LookUp", "LookDown", "Done"})


def encode_picture(picture: Picture) -> bytes:
    """PNG of a (H, W, 3) uint8 picture; same picture, same bytes."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"a picture must be (H, W, 3) uint8, got {picture.shape} {picture.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def decode_picture(image: bytes) -> Picture:
    """The (H, W, 3) uint8 picture of a PNG; ArtifactError if it is none."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return np.asarray(opened.convert("RGB"), dtype=np.uint8)
    except OSError as error:
        raise ArtifactError(f"a frame of {len(image)} bytes is not a picture: {error}") from error


class FrameTable:
    """Frames by episode and index; a picture is decoded once, when it is first looked at."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self._frames: dict[tuple[str, int], Frame] = {(frame.episode_id, frame.frame_index): frame for frame in frames}
        self._pictures: dict[tuple[str, int], Picture] = {}

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._frames

    def image(self, episode_id: str, frame_index: int) -> bytes:
        """The encoded frame; ArtifactError if it was not extracted."""
        try:
            return self._frames[episode_id, frame_index].image
        except KeyError:
            raise ArtifactError(f"frame {frame_index} of episode {episode_id} was not extracted") from None

    def picture(self, episode_id: str, frame_index: int) -> Picture:
        """The decoded frame, (H, W, 3) uint8."""
        key = episode_id, frame_index
        if key not in self._pictures:
            self._pictures[key] = decode_picture(self.image(episode_id, frame_index))
        return self._pictures[key]

    def by_episode(self) -> Mapping[str, list[int]]:
        """Indices of the frames of every episode, ascending."""
        grouped: dict[str, list[int]] = {}
        for episode, index in sorted(self._frames):
            grouped.setdefault(episode, []).append(index)
        return grouped

    def same_picture(self, episode_id: str, first: int, second: int) -> bool:
        """Whether two frames of an episode show exactly the same pixels."""
        return np.array_equal(self.picture(episode_id, first), self.picture(episode_id, second))


def steps_by_episode(steps: Iterable[Step]) -> dict[str, list[Step]]:
    """Steps of each episode, in their order."""
    grouped: dict[str, list[Step]] = {}
    for step in sorted(steps, key=lambda step: (step.episode_id, step.step)):
        grouped.setdefault(step.episode_id, []).append(step)
    return grouped


def is_interaction(action: str) -> bool:
    """Whether the actor's own text names a thing to do something with (not whether that was done)."""
    parsed = read_action(action)
    return parsed is not None and parsed.verb not in _NOT_INTERACTIONS


def select_frames(steps: Sequence[Step], length: int, settings: FrameSettings) -> list[int]:
    """Indices in 0..length of the frames the critic sees, ascending; the last frame is always one of them.

    `steps` are the steps of one episode. `interactions` takes the frames right before and right after each interaction
    that the actor wrote; over `limit`, whole pairs are dropped from the earliest on, because what lies nearest to the
    end says most about how it ended.
    """
    if settings.select == "last":
        return [length]
    if settings.select == "all":
        return list(range(length + 1))[-settings.limit :]
    chosen = {length}
    for step in sorted(steps, key=lambda step: step.step, reverse=True):
        if step.well_formed and is_interaction(step.action):
            wider = chosen | {step.step, step.step + 1}
            if len(wider) > settings.limit:
                break
            chosen = wider
    return sorted(chosen)
