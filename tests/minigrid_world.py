"""MiniGrid's BabyAI as a world of a user's own: an adapter of the size that one needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from minigrid.envs.babyai.other import ActionObjDoor

from selu.config import WorldSettings
from selu.records import Task
from selu.worlds.actions import Grammar, parse_action
from selu.worlds.base import PREDICATES, Frame, OracleState, World

GRAMMAR = Grammar(("TurnLeft", "TurnRight", "MoveAhead", "PickUp", "Drop", "Toggle", "Done"), ())
TILE = 12


class MiniGridWorld(World):
    """One room with doors, boxes, balls and keys, seen from above as far as the agent sees."""

    skill_set = "tests.minigrid_world:GRAMMAR"

    def __init__(self, settings: WorldSettings) -> None:
        self.settings = settings
        self.env = ActionObjDoor(max_steps=10**6)
        side = self.env.agent_view_size * TILE
        self.observation_space = gymnasium.spaces.Box(0, 255, (side, side, 3), np.uint8)
        self.action_space = gymnasium.spaces.Text(max_length=64, min_length=0)
        actions = self.env.actions
        self._moves = {
            "TurnLeft": actions.left,
            "TurnRight": actions.right,
            "MoveAhead": actions.forward,
            "PickUp": actions.pickup,
            "Drop": actions.drop,
            "Toggle": actions.toggle,
        }

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        super().reset(seed=seed)
        assert options is not None
        self._task: Task = options["task"]
        self._steps, self._success = 0, True
        self.env.reset(seed=self._task.setup.spawn_seed)
        return self._frame(), {}

    def _frame(self) -> Frame:
        return np.ascontiguousarray(self.env.get_pov_render(TILE), np.uint8)

    def step(self, action: str) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        parsed = parse_action(action, self.skill_set)
        self._success = parsed is not None
        done = parsed is not None and parsed.verb == "Done"
        if parsed is not None and not done:
            self.env.step(self._moves[parsed.verb])  # that its mission is fulfilled ends nothing here
        return self._frame(), 0.0, done, not done and self._steps >= self.settings.max_steps, {}

    def oracle(self) -> OracleState:
        facts: dict[str, Any] = {name: [] for name in PREDICATES}
        facts["held"] = [self.env.carrying.type.capitalize()] if self.env.carrying else []
        doors = [thing for thing in self.env.grid.grid if thing is not None and thing.type == "door"]
        facts["open"] = ["Door"] if any(door.is_open for door in doors) else []
        facts["closed"] = [] if facts["open"] else ["Door"]
        return OracleState(self._success, "", facts)

    @property
    def task(self) -> Task:
        return self._task

    def candidates(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        self.env.close()
