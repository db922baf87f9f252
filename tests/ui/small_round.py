"""Small rounds of the dummy world by the command itself: ``python -m tests.ui.small_round SETTINGS.yaml TIMES``.

A process of its own, because Prefect reads its profile when it is first imported. Where nothing is to be seen, the models
answer what a page must not fall for.
"""

from __future__ import annotations

import sys

import pytest

from selu.models.base import Prompt
from tests.dummy_world import SeeingModel, install

HOSTILE = (
    '<script>window.fooled = 1</script><img src=x onerror="window.fooled = 1"> ![x](http://evil.invalid/a.png) '
    "[y](javascript:window.fooled=1) | `z` ``` & &lt; *w* _v_"
)


def _install_hostile(patch: pytest.MonkeyPatch) -> None:
    answer = SeeingModel._answer

    def hostile(model: SeeingModel, prompt: Prompt, seed: int | None) -> str:
        said = answer(model, prompt, seed)
        if seed is not None and seed % 5 == 0:
            return HOSTILE
        return HOSTILE if said == "nothing" else said

    patch.setattr(SeeingModel, "_answer", hostile)


if __name__ == "__main__":
    changed = pytest.MonkeyPatch()
    install(changed)
    _install_hostile(changed)
    from selu.cli.main import app

    for _ in range(int(sys.argv[2])):
        app(["round", "--config", sys.argv[1]], standalone_mode=False)
