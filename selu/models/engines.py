"""Which engine runs a model: one module each, imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selu.models.base import VisionLanguageModel

if TYPE_CHECKING:
    from selu.config import ModelSettings

__all__ = ["load_model", "model_revision"]


def load_model(settings: ModelSettings, adapter: Path | None = None) -> VisionLanguageModel:
    """Load the model that `settings` name, under `adapter` (or the settings' own), with the engine that they name.

    Raises:
        ConfigError: the model or adapter is missing, incomplete, or of the wrong kind, or the engine cannot run it here.
    """
    model: VisionLanguageModel = _engine(settings).load_model(settings, adapter)
    return model


def model_revision(settings: ModelSettings, adapter: Path | None = None) -> str:
    """Return what ``load_model(settings, adapter).revision`` would be, without loading anything.

    Raises:
        ConfigError: as :func:`load_model`, as far as it can be told beforehand.
    """
    revision: str = _engine(settings).model_revision(settings, adapter)
    return revision


def _engine(settings: ModelSettings) -> Any:
    return import_module(f"selu.models.{settings.engine}_engine")
