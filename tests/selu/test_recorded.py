"""Trajectories from elsewhere: taken as they are, and what is wrong with them said in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selu.errors import ConfigError
from selu.frames import decode_picture
from selu.recorded import count_unreadable, list_recorded, read_recorded


def record(folder: Path, instruction: str, actions: list[str], levels: list[int], *, size: int = 8) -> None:
    """Write a recorded episode of pictures of one grey level each."""
    folder.mkdir(parents=True)
    (folder / "episode.json").write_text(json.dumps({"instruction": instruction, "actions": actions}))
    for index, level in enumerate(levels):
        Image.fromarray(np.full((size, size, 3), level, dtype=np.uint8)).save(folder / f"{index:03}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    record(tmp_path / "b", "open the fridge", ["Open(Fridge)", "Done"], [10, 20, 20])
    record(tmp_path / "a", "close the box", ["walk about"], [30, 40])
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_what_is_in_the_folder_becomes_episodes_like_a_rollouts(folder: Path) -> None:
    episodes, steps, frames = read_recorded(list_recorded(folder), "household")
    assert [(row.task_id, row.instruction, row.length, row.finish_reason) for row in episodes] == [
        ("a", "close the box", 1, "step_limit"),
        ("b", "open the fridge", 2, "done"),
    ]
    assert [(row.action, row.well_formed) for row in steps] == [
        ("walk about", False),
        ("Open(Fridge)", True),
        ("Done", True),
    ]
    assert [int(decode_picture(row.image)[0, 0, 0]) for row in frames] == [30, 40, 10, 20, 20]
    again = read_recorded(list_recorded(folder), "household")
    assert again == (episodes, steps, frames)


def test_an_episodes_name_hangs_on_what_is_in_it(folder: Path) -> None:
    before = [item.digest for item in list_recorded(folder)]
    Image.fromarray(np.full((8, 8, 3), 99, dtype=np.uint8)).save(folder / "a" / "001.png")
    after = [item.digest for item in list_recorded(folder)]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_what_is_wrong_is_said_with_the_place(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder; expected one with a folder for each recorded episode"):
        list_recorded(folder / "missing")
    with pytest.raises(ConfigError, match="holds no recorded episode"):
        list_recorded(folder / "notes")
    (folder / "a" / "001.png").unlink()
    with pytest.raises(ConfigError, match="has 1 picture and 1 action; expected one picture more"):
        list_recorded(folder)
    (folder / "a" / "episode.json").write_text('{"instruction": "", "actions": []}')
    with pytest.raises(ConfigError, match=r"episode.json: instruction: .* expected"):
        list_recorded(folder)
    (folder / "a" / "episode.json").write_text("no json")
    with pytest.raises(ConfigError, match=r"episode.json: the whole: Invalid JSON"):
        list_recorded(folder)


def test_pictures_are_of_one_size_and_can_be_read(folder: Path) -> None:
    record(folder / "c", "open the box", [], [10], size=16)
    with pytest.raises(ConfigError, match="is 16x16 pixels, those before it 8x8; expected all of one size"):
        list_recorded(folder)
    (folder / "c" / "000.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"000.png is not a picture that can be read"):
        list_recorded(folder)


def test_numbers_in_the_names_of_pictures_count_as_numbers(tmp_path: Path) -> None:
    episode = tmp_path / "episode"
    episode.mkdir()
    (episode / "episode.json").write_text(json.dumps({"instruction": "look", "actions": ["RotateLeft"] * 11}))
    for number in range(12):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(episode / f"{number}.png")
    [recorded] = list_recorded(tmp_path)
    assert [picture.name for picture in recorded.pictures] == [f"{number}.png" for number in range(12)]
    # Times are decimals.
    times = sorted(f"{99 + number / 4:g}" for number in range(12))
    for number, time in enumerate(sorted(times, key=float)):
        (episode / f"{number}.png").rename(episode / f"{time if '.' in time else time + '.0'}.png")
    [recorded] = list_recorded(tmp_path)
    assert [float(picture.stem) for picture in recorded.pictures] == [99 + number / 4 for number in range(12)]


def test_numbers_that_may_be_decimals_or_not_are_refused_where_the_order_hangs_on_it(tmp_path: Path) -> None:
    record(tmp_path / "one", "look", ["RotateLeft"], [1, 2])
    for before, after in (("000", "rgb_1.5"), ("001", "rgb_1.45")):
        (tmp_path / "one" / f"{before}.png").rename(tmp_path / "one" / f"{after}.png")
    with pytest.raises(ConfigError, match=r"rgb_1\.5\.png: it cannot be told whether its number is a decimal"):
        list_recorded(tmp_path)
    (tmp_path / "one" / "rgb_1.45.png").rename(tmp_path / "one" / "rgb_1.25.png")
    (tmp_path / "one" / "rgb_1.5.png").rename(tmp_path / "one" / "rgb_1.50.png")
    [recorded] = list_recorded(tmp_path)
    assert [picture.name for picture in recorded.pictures] == ["rgb_1.25.png", "rgb_1.50.png"]


def test_pictures_without_their_description_are_not_passed_over(folder: Path) -> None:
    (folder / "b" / "episode.json").rename(folder / "b" / "episode.jsn")
    with pytest.raises(ConfigError, match=r"b has pictures and no episode\.json, as 1 folder of 3"):
        list_recorded(folder)


def test_actions_of_another_grammar_are_counted(folder: Path) -> None:
    assert count_unreadable(list_recorded(folder), "household") == (1, 3), "'walk about'"
