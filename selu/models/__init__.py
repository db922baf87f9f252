"""One vision-language contract, several engines."""

from selu.models.base import Prompt, Reply, VisionLanguageModel
from selu.models.engines import load_model, model_revision
from selu.models.transformers_engine import EMBEDDED_MODEL, TransformersModel

__all__ = [
    "EMBEDDED_MODEL",
    "Prompt",
    "Reply",
    "TransformersModel",
    "VisionLanguageModel",
    "load_model",
    "model_revision",
]
