"""The general probe: frozen questions about frames outside any task. Does a model forget what it knew?

Right is what matches the answer exactly, as the base model would write it; nothing is put into the model's mouth. The
frames show random states of the learning and transfer scenes, which no base model was trained on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import Field

from selu.errors import ConfigError
from selu.frames import decode_picture
from selu.models.base import Prompt
from selu.prompting import PromptStyle, question_prompt
from selu.records import Record
from selu.store import read_table
from selu.worlds.tasks import FROZEN

__all__ = ["GENERAL_FILE", "GeneralQuestion", "general_prompts", "general_questions", "general_questions_digest"]

GENERAL_FILE = FROZEN / "general.parquet"


class GeneralQuestion(Record):
    """A question about one frame, with the true answer."""

    image: bytes = Field(description="PNG, (96, 96, 3) uint8", repr=False)
    question: str
    answer: str
    kind: str = Field(description="what it asks about: held, holding, view, where, open, on, broken, ...")
    scene: str = Field(description="iTHOR scene, e.g. FloorPlan21")


def general_questions(count: int, path: Path = GENERAL_FILE) -> list[GeneralQuestion]:
    """The first `count` questions; kinds and answers take turns, so that any beginning is balanced.

    Raises:
        ConfigError: there are fewer.
        ArtifactError: the file is missing or damaged.
    """
    shipped = read_table(path, GeneralQuestion)
    if count > len(shipped):
        raise ConfigError(
            f"the general probe has {len(shipped)} questions, {count} were asked for; lower "
            "evaluation.general_questions (0 leaves the probe out)"
        )
    return shipped[:count]


def general_questions_digest(path: Path = GENERAL_FILE) -> str:
    """sha256 of the shipped file, hexadecimal. Raises ConfigError if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"the general probe cannot be read ({path}: {error.strerror}); reinstall the project, or set "
            "evaluation.general_questions=0 to leave the probe out"
        ) from error


def general_prompts(questions: list[GeneralQuestion], style: PromptStyle = "brief") -> list[Prompt]:
    """What a model is shown: frame and question, not the answer."""
    return [Prompt((decode_picture(row.image),), question_prompt(row.question, style)) for row in questions]
