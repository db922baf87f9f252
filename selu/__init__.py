"""SELU (arXiv 2410.03303): embodied multimodal language models that teach themselves in a world they do not know."""

import os

__version__ = "0.1.0"

# Before any library that reads them is imported: nothing is sent to anybody unless the environment says so.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(_name, _value)
