"""One vision-language contract, several engines."""

from selu.models.base import Prompt, Reply, VisionLanguageModel
from selu.models.transformers_engine import EMBEDDED_MODEL, TransformersModel, load_model, model_revision

__all__ = [
    "EMBEDDED_MODEL",
    "Prompt",
    "Reply",
    "TransformersModel",
    "VisionLanguageModel",
    "load_model",
    "model_revision",
]
