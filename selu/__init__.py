"""SELU (arXiv 2410.03303): embodied multimodal language models that teach themselves in a world they do not know."""

__version__ = "0.1.0"
