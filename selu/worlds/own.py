"""What a user names by where it is imported from: a world or a grammar of their own, ``package.module:Name``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from selu.errors import ConfigError

__all__ = ["imported", "source_of"]


def imported(reference: str, setting: str) -> Any:
    """What ``package.module:Name`` names; ``setting`` is where the user wrote it. Raises ConfigError."""
    module_name, _, name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            what, mend = "cannot be found", "install the package that holds it, or name its folder in PYTHONPATH"
        else:
            what, mend = f"cannot be imported ({type(error).__name__}: {error})", "mend what its code raises"
        raise ConfigError(f"{setting}={reference}: {module_name} {what}; {mend}") from error
    if name not in vars(module):
        raise ConfigError(f"{setting}={reference}: {module_name} has no {name}")
    return vars(module)[name]


def source_of(reference: str, setting: str) -> Path:
    """The file of the module that ``package.module:Name`` names. Raises ConfigError."""
    imported(reference, setting)
    return Path(str(sys.modules[reference.partition(":")[0]].__file__))
