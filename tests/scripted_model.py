"""A vision-language model whose answers are written down beforehand, and rows to ask it about.

A scripted frame is of one grey level; the script says what the model answers about that level. A question that the
script does not know fails the test: nothing is answered by accident.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selu.frames import encode_picture
from selu.models.base import Prompt, Reply
from selu.prompting import PromptStyle
from selu.records import Episode, Frame, Step

SIZE = 8

Script = Mapping[tuple[int | None, str], str | tuple[str, float]]
"""(grey level, or None for any frame; text) -> answer, or answer and probability (0.99 if not given)."""


class ScriptedModel:
    """Answers from a script and keeps what it was asked, one list a call."""

    def __init__(self, script: Script, revision: str = "scripted", prompt_style: PromptStyle = "brief") -> None:
        self.script = script
        self.prompt_style = prompt_style
        self.revision = revision
        self.calls: list[list[tuple[int | None, str]]] = []

    def _answer(self, prompt: Prompt) -> tuple[str, float]:
        level = int(prompt.images[-1][0, 0, 0]) if prompt.images else None
        for key in ((level, prompt.text), (None, prompt.text)):
            if key in self.script:
                answer = self.script[key]
                return answer if isinstance(answer, tuple) else (answer, 0.99)
        raise KeyError(f"the script has no answer at level {level} to: {prompt.text}")

    def _note(self, prompts: Sequence[Prompt]) -> None:
        self.calls.append(
            [(int(prompt.images[-1][0, 0, 0]) if prompt.images else None, prompt.text) for prompt in prompts]
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:
        self._note(prompts)
        return [
            Reply(text=text, log_probability=float(np.log(probability)))
            for text, probability in map(self._answer, prompts)
        ]

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> NDArray[np.float64]:
        self._note(prompts)
        rows = []
        for text, probability in map(self._answer, prompts):
            rest = (1 - probability) / (len(choices) - 1)
            rows.append([np.log(probability if choice == text else rest) for choice in choices])
        return np.asarray(rows, dtype=np.float64)

    def with_adapter(self, path: Path | None) -> ScriptedModel:
        return self


def picture(level: int) -> NDArray[np.uint8]:
    """A frame of one grey level, (8, 8, 3) uint8."""
    return np.full((SIZE, SIZE, 3), level, dtype=np.uint8)


def make_episode(
    name: str,
    instruction: str,
    actions: Sequence[str],
    levels: Sequence[int],
    *,
    scene: str = "FloorPlan21",
    malformed: Sequence[int] = (),
) -> tuple[Episode, list[Step], list[Frame]]:
    """An episode of `actions` whose frames have the grey `levels` (one more than actions)."""
    assert len(levels) == len(actions) + 1
    episode = Episode(
        episode_id=name,
        task_id=f"task-{name}",
        scene=scene,
        instruction=instruction,
        seed=0,
        policy="actor-0",
        length=len(actions),
        finish_reason="done" if actions and actions[-1] == "Done" else "step_limit",
    )
    steps = [
        Step(
            episode_id=name,
            step=index,
            prompt=instruction,
            action=action,
            well_formed=index not in malformed,
            log_probability=-0.1,
        )
        for index, action in enumerate(actions)
    ]
    frames = [
        Frame(episode_id=name, frame_index=index, image=encode_picture(picture(level)))
        for index, level in enumerate(levels)
    ]
    return episode, steps, frames
