"""Modules of VirtualHome's wheel, which can be neither installed nor imported as it is.

Its dependencies pin packages that current Pythons cannot install, and ``import virtualhome`` fails on a guess about
``sys.path``. What lies in its ``simulation`` folder works when it is imported from there.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
import threading
from pathlib import Path
from types import ModuleType

from selu.errors import ConfigError

INSTALL = "pip install --no-deps virtualhome==2.3.0"

_importing = threading.Lock()


def wheel_module(name: str) -> ModuleType:
    """A module below VirtualHome's ``simulation`` folder, e.g. ``evolving_graph.execution``. Raises ConfigError."""
    spec = importlib.util.find_spec("virtualhome")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"VirtualHome is not installed: {INSTALL} (--no-deps because what it pins does not install any more; what it "
            "needs is here already)"
        )
    folder = str(Path(spec.submodule_search_locations[0]) / "simulation")
    with _importing:
        drawn = random.getstate()  # it seeds the global generator
        sys.path.insert(0, folder)
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"VirtualHome's {name} cannot be imported ({error}); {INSTALL}") from error
        finally:
            sys.path.remove(folder)
            random.setstate(drawn)
