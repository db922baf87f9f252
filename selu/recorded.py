"""Trajectories that somebody recorded elsewhere: a folder of pictures, instructions and actions, and no world.

One folder an episode, whatever it is called::

    recordings/
      morning-1/
        episode.json   {"instruction": "open the fridge", "actions": ["Approach(Fridge)", "Open(Fridge)", "Done"]}
        000.png ... 003.png

with one picture more than actions, in the order of their names (numbers in them count as numbers, so that 9.png comes
before 10.png): picture t is what was seen before action t, the last one what was seen at the end. `scene` may stand beside
`instruction`, and nothing else may. Nothing of it is truth.
Links are refused: a folder from elsewhere shall not name files of this machine.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selu.errors import ConfigError
from selu.frames import Picture, encode_picture
from selu.records import Episode, Frame, Relabel, Step, Verdict
from selu.store import ArtifactRef, Store, read_table
from selu.worlds.actions import DONE, parse_action

__all__ = ["Label", "Recorded", "count_unreadable", "labels_of", "list_recorded", "read_recorded"]

_DESCRIPTION = "episode.json"
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_POLICY = "recorded"


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    instruction: str = Field(min_length=1)
    actions: list[str]
    scene: str = ""


class Recorded(BaseModel):
    """One recorded episode: what describes it, its pictures in order, and a digest of all of these."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    instruction: str
    actions: tuple[str, ...]
    scene: str
    pictures: tuple[Path, ...]
    digest: str = Field(description="sha256 of name, description and pictures")


def list_recorded(folder: Path) -> list[Recorded]:
    """The episodes of a folder, in the order of their names; every file is read once, to be hashed.

    Raises:
        ConfigError: there is no episode, or one is not as this module says.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; expected one with a folder for each recorded episode.")
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    found = [_described(path) for path in folders if (path / _DESCRIPTION).is_file()]
    lost = [path for path in folders if not (path / _DESCRIPTION).is_file() and any(map(_is_picture, path.iterdir()))]
    if found and lost:
        raise ConfigError(
            f"{lost[0]} has pictures and no {_DESCRIPTION}, as {_count(len(lost), 'folder')} of {len(folders)}; describe what "
            "was told and done there, or move it elsewhere."
        )
    sizes = {picture: _size(picture) for item in found for picture in item.pictures}
    for path, size in sizes.items():
        first = next(iter(sizes.values()))
        if size != first:
            raise ConfigError(
                f"{path} is {size[0]}x{size[1]} pixels, those before it {first[0]}x{first[1]}; expected all of one size."
            )
    if not found and (folder / _DESCRIPTION).is_file():
        raise ConfigError(
            f"{folder} is one episode's own folder; give the one that holds it: {folder.absolute().parent}."
        )
    if not found:
        raise ConfigError(
            f"{folder} holds no recorded episode; expected folders, each with {_DESCRIPTION} and one picture more than "
            "it has actions."
        )
    return found


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in _PICTURES


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _described(folder: Path) -> Recorded:
    for entry in (folder, *sorted(folder.iterdir())):
        if entry.is_symlink():
            raise ConfigError(f"{entry} is a link; expected folders and files themselves, so copy what it points to.")
    path = folder / _DESCRIPTION
    try:
        text = path.read_bytes()
        described = _Described.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ConfigError(
            f'{path}: {where}: {first["msg"]}; expected {{"instruction": "...", "actions": ["...", ...]}} and perhaps '
            '"scene".'
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    pictures = sorted(filter(_is_picture, folder.iterdir()), key=_in_natural_order)
    misleading = [file for file in pictures if re.search(r"\D\d+\.\d", file.stem)]
    if pictures != sorted(pictures, key=_by_decimals) and misleading:
        raise ConfigError(
            f"{misleading[0]}: it cannot be told whether its number is a decimal, and the order of the pictures hangs on it; "
            "number them 0001, 0002, ..."
        )
    if len(pictures) != len(described.actions) + 1:
        raise ConfigError(
            f"{folder} has {_count(len(pictures), 'picture')} and {_count(len(described.actions), 'action')}; expected one "
            "picture more than actions: what was seen before each, and at the end."
        )
    digest = hashlib.sha256(json.dumps([folder.name, hashlib.sha256(text).hexdigest()]).encode())
    for picture in pictures:
        digest.update(hashlib.sha256(picture.read_bytes()).digest())
    return Recorded(
        folder=folder,
        instruction=described.instruction,
        actions=tuple(described.actions),
        scene=described.scene,
        pictures=tuple(pictures),
        digest=digest.hexdigest(),
    )


def _in_natural_order(picture: Path) -> tuple[list[tuple[int, str]], str]:
    """Text as text, numbers as numbers, a decimal such as a time as one; what is alike in that goes by its name."""
    if re.fullmatch(r"\d+(\.\d+)?", picture.stem):
        whole, _, fraction = picture.stem.partition(".")
        return [(int(whole), ""), (-1, fraction)], picture.name
    parts = re.split(r"(\d+)", picture.stem)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], picture.name


def _by_decimals(picture: Path) -> tuple[list[tuple[float, str]], str]:
    """The other way to read numbers with a point in a name that has more than that."""
    parts = re.split(r"(\d+(?:\.\d+)?)", picture.stem)
    return [(float(part), "") if part[:1].isdecimal() else (-1, part) for part in parts], picture.name


def count_unreadable(recorded: Sequence[Recorded], skill_set: str) -> tuple[int, int]:
    """How many of the recorded actions are none of `skill_set`, and how many there are."""
    actions = [action for item in recorded for action in item.actions]
    return sum(parse_action(action, skill_set) is None for action in actions), len(actions)


def read_recorded(recorded: Sequence[Recorded], skill_set: str) -> tuple[list[Episode], list[Step], list[Frame]]:
    """Episodes, steps and frames as a rollout would have recorded them; pictures become PNG of (H, W, 3) uint8.

    Raises:
        ConfigError: a picture cannot be read.
    """
    episodes, steps, frames = [], [], []
    for item in recorded:
        name = item.digest[:16]
        for index, path in enumerate(item.pictures):
            frames.append(Frame(episode_id=name, frame_index=index, image=encode_picture(_picture(path))))
        steps += [
            Step(
                episode_id=name,
                step=index,
                prompt="",
                action=action,
                well_formed=parse_action(action, skill_set) is not None,
                log_probability=0.0,
            )
            for index, action in enumerate(item.actions)
        ]
        episodes.append(
            Episode(
                episode_id=name,
                task_id=item.folder.name,
                scene=item.scene,
                instruction=item.instruction,
                seed=0,
                policy=_POLICY,
                length=len(item.actions),
                finish_reason="done" if item.actions and item.actions[-1].strip() == DONE else "step_limit",
            )
        )
    return episodes, steps, frames


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as opened:
            return opened.size
    except OSError as error:
        raise ConfigError(f"{path} is not a picture that can be read: {error}.") from error


def _picture(path: Path) -> Picture:
    try:
        with Image.open(path) as opened:
            return np.asarray(opened.convert("RGB"), dtype=np.uint8)
    except OSError as error:
        raise ConfigError(f"{path} is not a picture that can be read: {error}.") from error


class Label(NamedTuple):
    """What was made of one recorded episode."""

    episode: str
    instruction: str
    verdict: str
    accepted: str
    relabeled_as: str


def labels_of(
    store: Store, episodes: Sequence[ArtifactRef], judgements: Sequence[ArtifactRef], relabels: Sequence[ArtifactRef]
) -> list[Label]:
    """One line an episode: the critic's verdict, and what else was achieved. Raises ArtifactError if one is damaged."""
    verdicts = {
        row.episode_id: row for ref in judgements for row in read_table(store.path(ref) / "verdicts.parquet", Verdict)
    }
    achieved: dict[str, list[str]] = {}
    for ref in relabels:
        for row in read_table(store.path(ref) / "relabels.parquet", Relabel):
            if row.accepted and not row.partial:
                achieved.setdefault(row.episode_id, []).append(row.instruction)
    return [
        Label(
            row.task_id,
            row.instruction,
            verdicts[row.episode_id].verdict,
            "yes" if verdicts[row.episode_id].accepted else f"no: {verdicts[row.episode_id].reason}",
            ", ".join(achieved.get(row.episode_id, [])),
        )
        for ref in episodes
        for row in read_table(store.path(ref) / "episodes.parquet", Episode)
    ]
