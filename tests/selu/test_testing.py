"""The contract of a world: three that keep it, and a sentence for each way to break it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from selu.config import TaskSettings, WorldSettings
from selu.records import Condition, Setup, Task
from selu.testing import BrokenContract, check_world
from selu.worlds.base import PREDICATES, OracleState, World, holds
from selu.worlds.planner import solve
from selu.worlds.tasks import generate_tasks
from selu.worlds.thor import PlayerSimulator, ThorWorld

START = Setup(spawn_seed=3, position=(0.0, 0.9, 0.0), rotation=0.0)
TASK = Task(task_id="0", scene="room", kind="own", instruction="open the door", setup=START)


def test_thor_keeps_the_contract() -> None:
    settings = WorldSettings()
    world = ThorWorld(PlayerSimulator(settings), settings)
    task = generate_tasks(TaskSettings(split="development", kinds=("open",)), world, 3, 1)[0]
    world.reset(options={"task": task})
    actions = solve(world)[:-1]
    assert holds(task.goal, world.oracle().facts)
    check_world(lambda: ThorWorld(PlayerSimulator(settings), settings), task, actions)


def test_the_world_of_the_readme_keeps_the_contract(readme_world: str, tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    exec(readme_world, told)
    told["test_corridor"]()
    # Nothing of it is there for the contract alone: its goal can be reached and told.
    task = generate_tasks_of(tmp_path, "pick up the mug", told["Corridor"](told["SETTINGS"]))
    mine = told["Corridor"](told["SETTINGS"])
    mine.reset(options={"task": task})
    for action in ["MoveAhead"] * 5 + ["PickUp(Mug)"]:
        mine.step(action)
    assert holds(task.goal, mine.oracle().facts)


def generate_tasks_of(folder: Path, instruction: str, world: World) -> Task:
    listed = folder / "mine.txt"
    listed.write_text(instruction, encoding="utf-8")
    return generate_tasks(TaskSettings(instructions=listed), world, 5, 1)[0]


def test_minigrid_keeps_the_contract() -> None:
    pytest.importorskip("minigrid", reason="minigrid comes with the dev extra")
    from tests.minigrid_world import MiniGridWorld

    settings = WorldSettings(name="tests.minigrid_world:MiniGridWorld", skill_set="tests.minigrid_world:GRAMMAR")
    actions = ["MoveAhead", "TurnRight", "PickUp", "Toggle", "Drop"]
    check_world(lambda: MiniGridWorld(settings), TASK, actions)


class Door(World):
    """A door that opens and closes, white or black beside a grey wall; each flaw is one broken promise."""

    def __init__(self, flaw: str = "") -> None:
        self.flaw = flaw
        self.observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
        self.action_space = gymnasium.spaces.Text(max_length=64, min_length=0)
        if flaw == "no spaces":
            del self.observation_space
        if flaw == "skill set":
            self.skill_set = "flying"
        self.shared = np.zeros((8, 8, 3), np.uint8)
        self.closed = 0
        self.resets = 0

    def _frame(self) -> Any:
        frame = self.shared if self.flaw == "one buffer" else np.zeros((8, 8, 3), np.uint8)
        frame[:4] = 120
        frame[4:] = 255 if self.open else 0
        if self.flaw == "grey":
            frame[:] = 120
        if self.flaw == "never the same":
            frame[0, 0, 0] = self.resets
        if self.flaw == "oracle draws":
            frame[0, 0, 1] = self.asked
        return frame / 255 if self.flaw == "floats" else frame

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        assert options is not None
        self._task = options["task"]
        self.open, self.steps, self.success = False, 0, True
        self.resets += 1
        self.asked = 0
        if self.flaw == "reset raises":
            raise KeyError("no such room")
        return self._frame() if self.flaw == "reset without info" else (self._frame(), {})  # type: ignore[return-value]

    def step(self, action: str) -> Any:
        self.steps += 1
        self.success = action in ("Open(Door)", "Close(Door)", "Done")
        if self.success:
            self.open = action == "Open(Door)" if action != "Done" else self.open
        elif self.flaw == "malformed opens":
            self.open = True
        elif self.flaw == "malformed raises":
            raise ValueError(action)
        done = action == "Done" or (self.flaw == "ends at the goal" and self.open)
        late = self.steps >= (99 if self.flaw == "no limit" else 4 if self.flaw == "early" else 10)
        answer = (
            self._frame(),
            1.0 if self.flaw == "reward" and self.open else 0.0,
            np.bool_(done) if self.flaw == "numpy bool" else done,
            late if self.flaw == "done is truncated" else late and not done,
            {"success": self.success} if self.flaw == "info" else {},
        )
        return answer[:4] if self.flaw == "old gym" else answer

    def oracle(self) -> OracleState:
        self.asked += 1
        facts: dict[str, Any] = {name: [] for name in PREDICATES}
        facts["open"], facts["closed"] = (["Door"], []) if self.open else ([], ["Door"])
        if self.flaw == "facts missing":
            del facts["held"]
        if self.flaw == "facts are sets":
            facts["held"] = set()
        return OracleState(self.success or self.flaw == "always a success", "", facts)

    @property
    def task(self) -> Task:
        return (
            self._task.model_copy(update={"goal": (Condition(predicate="held", object_type="Door"),)})
            if (self.flaw == "another task")
            else self._task
        )

    def candidates(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.closed += 1
        if self.flaw == "closes once" and self.closed > 1:
            raise OSError("the socket is gone")


def test_a_world_without_a_flaw_passes() -> None:
    check_world(Door, TASK, ["Open(Door)", "Close(Door)"])


@pytest.mark.parametrize(
    ("flaw", "says"),
    [
        ("no spaces", "observation_space must be a gymnasium.spaces.Box"),
        ("skill set", "no skill set 'flying'"),
        ("one buffer", "an earlier one was changed by a later step"),
        ("grey", "of one colour"),
        ("never the same", "those of a second episode differ"),
        ("oracle draws", "asking the oracle must change nothing"),
        ("floats", r"must be \(H, W, 3\) uint8, got \(8, 8, 3\) float64"),
        ("reset raises", "must not raise, it raised KeyError"),
        ("reset without info", r"reset must give \(frame, info\)"),
        ("malformed opens", "changed the picture"),
        ("malformed raises", "it raised ValueError"),
        ("ends at the goal", "only the actor's own Done terminates"),
        ("no limit", "step 10 is the limit"),
        ("early", "step 4 was truncated"),
        ("reward", "the reward must be 0.0"),
        ("numpy bool", "terminated must be a bool"),
        ("done is truncated", "must terminate and not truncate"),
        ("info", "step's info must be {}"),
        ("old gym", "got a tuple of 4"),
        ("facts missing", "held is missing"),
        ("facts are sets", "must be JSON"),
        ("always a success", "action_success must be false"),
        ("another task", "task must be the task that reset was given"),
        ("closes once", r"a second close\(\) must not raise"),
    ],
)
def test_each_breach_is_one_sentence(flaw: str, says: str) -> None:
    with pytest.raises(BrokenContract, match=says):
        check_world(lambda: Door(flaw), TASK, ["Open(Door)", "Close(Door)"])


@pytest.mark.parametrize(
    ("make", "actions", "says"),
    [
        (object, ["Open(Door)"], "must be a selu.worlds.World, got object"),
        (Door, ["RotateLeft"], "none of the actions changed the picture"),
        (Door, ["Open(Door)", "Fly(Door)"], "`Fly\\(Door\\)` must be an action of its skill set household"),
    ],
)
def test_what_was_given_is_looked_at_too(make: Callable[[], Any], actions: list[str], says: str) -> None:
    with pytest.raises(BrokenContract, match=says):
        check_world(make, TASK, actions)


def test_done_is_not_given() -> None:
    with pytest.raises(ValueError, match="none of them Done"):
        check_world(Door, TASK, ["Done"])
