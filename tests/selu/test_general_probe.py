"""The shipped general probe is balanced however much of it is asked, and lies where no base model was trained."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from selu.base_model import make_general_probe
from selu.base_model.corpus import render_frames
from selu.config import EvaluationSettings, scenes_of_split
from selu.errors import ArtifactError, ConfigError
from selu.general_probe import (
    GENERAL_FILE,
    GeneralQuestion,
    general_prompts,
    general_questions,
    general_questions_digest,
)

DEFAULT = EvaluationSettings().general_questions


@pytest.fixture(scope="module")
def shipped() -> list[GeneralQuestion]:
    return general_questions(DEFAULT)


def test_it_is_small_and_has_what_the_default_asks(shipped: list[GeneralQuestion]) -> None:
    assert len(shipped) == 400
    assert GENERAL_FILE.stat().st_size < 3_000_000
    assert len({row.image for row in shipped}) == 400


def test_it_lies_in_the_learning_and_the_transfer_scenes_alike(shipped: list[GeneralQuestion]) -> None:
    scenes = Counter(row.scene for row in shipped)
    for split in ("learning", "transfer"):
        assert sum(scenes[scene] for scene in scenes_of_split(split)) == 200
    assert set(scenes.values()) == {10}


@pytest.mark.parametrize("count", [40, 100, 250, 400])
def test_any_beginning_is_balanced(shipped: list[GeneralQuestion], count: int) -> None:
    rows = shipped[:count]
    kinds = Counter(row.kind for row in rows)
    assert len(kinds) == 10
    assert max(kinds.values()) - min(kinds.values()) <= 1
    for kind in kinds:
        answers = Counter(row.answer for row in rows if row.kind == kind)
        if {"yes", "no"} & set(answers):
            assert abs(answers["yes"] - answers["no"]) <= 1, kind
        assert max(answers.values()) <= kinds[kind] / 2 + 1


def test_questions_that_would_be_guessed_by_their_words_are_few(shipped: list[GeneralQuestion]) -> None:
    said: dict[str, Counter[str]] = {}
    for row in shipped:
        said.setdefault(row.question, Counter())[row.answer] += 1
    asked_often = {question: answers for question, answers in said.items() if answers.total() >= 8}
    assert asked_often
    for question, answers in asked_often.items():
        assert max(answers.values()) <= 0.75 * answers.total(), question


def test_a_model_is_shown_frame_and_question_alone(shipped: list[GeneralQuestion]) -> None:
    prompt, row = general_prompts(shipped[:1])[0], shipped[0]
    assert prompt.images[0].shape == (96, 96, 3)
    assert prompt.text == row.question


def test_more_questions_than_there_are_and_a_lost_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"has 400 questions, 401 were asked for; lower evaluation\.general_questions"
    ):
        general_questions(401)
    with pytest.raises(ArtifactError, match="no such table"):
        general_questions(1, tmp_path / "general.parquet")
    with pytest.raises(ConfigError, match=r"evaluation\.general_questions=0"):
        general_questions_digest(tmp_path / "general.parquet")


def test_drawing_it_is_a_matter_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    polar = {"yes": 3, "no": 3}
    monkeypatch.setattr(make_general_probe, "QUOTAS", {"held": {"nothing": 2, "": 4}, "view": polar, "open": polar})
    frames = render_frames(scenes_of_split("learning"), 60, 3)
    first, again, other = (make_general_probe.general_probe(frames, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({row.image for row in first}) == len(first) == 18
    monkeypatch.setattr(make_general_probe, "QUOTAS", {"sliced": {"yes": 100}})
    with pytest.raises(ValueError, match="60 frames give only"):
        make_general_probe.general_probe(frames, 1)
