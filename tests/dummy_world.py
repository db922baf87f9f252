"""A kitchen of one fridge and one mug, models that can see it, and settings for a round in seconds.

The kitchen is written into its pixels: the left half of a frame is red while the fridge is open, the right half green
while the mug is held. What the dummy models know is what they read there. They stand for any world and any model: all
of the pipeline around them is the real one, and fine-tuning trains a real (random, tiny) model, whose adapter makes
them wise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from selu.config import ModelSettings, Settings, WorldSettings, validate_settings
from selu.models.base import Prompt, Reply
from selu.prompting import PromptStyle
from selu.records import Condition, Setup, Task
from selu.worlds.base import OracleState, World

OPEN_FRIDGE = Condition(predicate="open", object_type="Fridge")
HOLD_MUG = Condition(predicate="held", object_type="Mug")
GOALS = {"open the fridge": OPEN_FRIDGE, "pick up the mug": HOLD_MUG}
SCENES = ("FloorPlan21", "FloorPlan22", "FloorPlan221", "FloorPlan321")
MAX_STEPS = 3


class DummyWorld(World):
    """Knows Open(Fridge), Close(Fridge), PickUp(Mug) and Done."""

    def __init__(self) -> None:
        self.fridge_open = self.mug_held = False
        self.steps = 0
        self._task: Task | None = None

    def _frame(self) -> NDArray[np.uint8]:
        frame = np.full((96, 96, 3), 90, dtype=np.uint8)
        frame[:, :48, 0] = 255 if self.fridge_open else 0
        frame[:, 48:, 1] = 255 if self.mug_held else 0
        # No two episodes look quite alike, as in a real home.
        marks = np.random.default_rng(int(self.task.task_id, 16)).integers(0, 255, (8, 8), dtype=np.uint8)
        frame[:8, :8, 2] = marks
        return frame

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        assert options is not None
        self._task = options["task"]
        self.fridge_open = self.mug_held = False
        self.steps = 0
        return self._frame(), {}

    def step(self, action: str) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if action in ("Open(Fridge)", "Close(Fridge)"):
            self.fridge_open = action == "Open(Fridge)"
        elif action == "PickUp(Mug)":
            self.mug_held = True
        return self._frame(), 0.0, action == "Done", action != "Done" and self.steps >= MAX_STEPS, {}

    def oracle(self) -> OracleState:
        facts: dict[str, Any] = {name: [] for name in ("on", "broken", "sliced", "dirty", "filled", "inside", "empty")}
        facts |= {"off": [], "clean": [], "visible": ["Fridge", "Mug"]}
        facts["open"] = ["Fridge"] if self.fridge_open else []
        facts["closed"] = [] if self.fridge_open else ["Fridge"]
        facts["held"] = ["Mug"] if self.mug_held else []
        return OracleState(action_success=True, error_message="", facts=facts)

    @property
    def task(self) -> Task:
        assert self._task is not None
        return self._task

    def candidates(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        pass


def make_task(number: int, name: str) -> Task:
    """Task `number` of a set."""
    instruction = sorted(GOALS)[number % len(GOALS)]
    return Task(
        task_id=hashlib.sha256(f"{name} {number}".encode()).hexdigest()[:16],
        scene=SCENES[number // 2 % len(SCENES)],
        kind="open" if "open" in instruction else "pick_up",
        instruction=instruction,
        goal=(GOALS[instruction],),
        setup=Setup(spawn_seed=number, position=(0.0, 0.9, 0.0), rotation=0.0),
    )


def solve(world: World, history: Sequence[str]) -> str:
    """The planner's next action."""
    if history and history[-1] in ("Open(Fridge)", "PickUp(Mug)"):
        return "Done"
    return "Open(Fridge)" if "fridge" in world.task.instruction else "PickUp(Mug)"


class SeeingModel:
    """Answers from the pixels. Questions it always gets right; verdicts and actions only under an adapter."""

    prompt_style: PromptStyle = "brief"

    def __init__(self, revision: str) -> None:
        self.revision = revision
        self.wise = "+" in revision

    @staticmethod
    def _holds(picture: NDArray[np.uint8], what: str) -> bool:
        return bool(picture[90, 10, 0] == 255) if "fridge" in what else bool(picture[90, 90, 1] == 255)

    def _answer(self, prompt: Prompt, seed: int | None) -> str:
        text, picture = prompt.text, prompt.images[-1]
        instruction = text.removeprefix("Instruction: ").split("\n")[0].split(" Which questions")[0]
        if text.endswith("Action?"):
            needed = "Open(Fridge)" if "fridge" in instruction else "PickUp(Mug)"
            if seed is not None:
                return str(np.random.default_rng(seed).choice([needed, "Open(Fridge)", "PickUp(Mug)", "Close(Fridge)"]))
            if self._holds(picture, instruction) or not self.wise:
                return "Done"
            return needed
        if "Which questions" in text:
            if instruction == "open the fridge":
                return "Is the fridge open? yes; What is open? fridge"
            if instruction == "pick up the mug":
                return "Are you holding the mug? yes; What are you holding? mug"
            return "Is the fridge closed? yes" if instruction == "close the fridge" else "no idea"
        if text == "What is open?":
            return "fridge" if self._holds(picture, "fridge") else "nothing"
        return "mug" if self._holds(picture, "mug") else "nothing"

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:
        drawn: Sequence[int | None] = list(seeds) if seeds is not None and temperature > 0 else [None] * len(prompts)
        return [Reply(self._answer(prompt, seed), -0.01) for prompt, seed in zip(prompts, drawn, strict=True)]

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> NDArray[np.float64]:
        rows = []
        for prompt in prompts:
            if not prompt.images:
                said = 0.5
            elif prompt.text.endswith("Was it done?"):
                held = self._holds(prompt.images[-1], prompt.text)
                said = (0.95 if held != ("close" in prompt.text) else 0.05) if self.wise else 0.6
            else:
                held = self._holds(prompt.images[-1], prompt.text)
                said = 0.97 if held != ("closed" in prompt.text) else 0.03
            rows.append([np.log(said if choice == "yes" else 1 - said) for choice in choices])
        return np.asarray(rows, dtype=np.float64)

    def with_adapter(self, path: Path | None) -> SeeingModel:
        return self


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the dummy world and models where the real ones would come from."""
    import selu.models
    import selu.rollout
    import selu.worlds.tasks

    real_revision = selu.models.model_revision

    def make_world(settings: WorldSettings) -> World:
        return DummyWorld()

    def draw(
        settings: object, world: World, seed: int, count: int, *, restarts: int, progress: object = None
    ) -> list[Task]:
        assert restarts == WorldSettings().restarts
        return [make_task(number, f"learning {seed}") for number in range(count)]

    def load(settings: ModelSettings, adapter: Path | None = None) -> SeeingModel:
        return SeeingModel(real_revision(settings, adapter))

    monkeypatch.setattr(selu.rollout, "make_world", make_world)
    monkeypatch.setattr(selu.rollout, "next_action", solve)
    monkeypatch.setattr(selu.rollout, "sibling_goal", lambda world, before: None)
    monkeypatch.setattr(selu.rollout, "_pools", {})
    monkeypatch.setattr(selu.worlds.tasks, "generate_tasks", draw)
    monkeypatch.setattr(
        selu.worlds.tasks, "frozen_tasks", lambda name: [make_task(number, name) for number in range(16)]
    )
    monkeypatch.setattr(selu.models, "load_model", load)


def small_settings(data_dir: Path, model: Path, **sections: Any) -> Settings:
    """A round of a dozen episodes in three shards."""
    data: dict[str, Any] = {
        "data_dir": str(data_dir),
        "report_to": [],
        "tasks": {"episodes": 12},
        "rollout": {"shard_size": 5, "players": 2},
        "actor": {"path": str(model), "prompts": "brief"},
        "critic": {"path": str(model), "prompts": "brief"},
        "dataset": {"replay": 0.0, "max_rows": 100},
        "critic_finetuning": {"max_steps": 2, "batch_size": 4, "rank": 2, "alpha": 4, "threads": 1},
        "actor_finetuning": {"max_steps": 2, "batch_size": 4, "rank": 2, "alpha": 4, "threads": 1},
        "evaluation": {
            "actor_episodes_a": 8,
            "actor_episodes_b": 4,
            "critic_episodes_a": 8,
            "critic_episodes_b": 4,
            "three_step_episodes": 0,
            "general_questions": 20,
            "bootstrap": 100,
        },
    }
    for name, changes in sections.items():
        data[name] = {**data[name], **changes} if isinstance(data.get(name), dict) else changes
    return validate_settings(data)
