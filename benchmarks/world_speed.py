"""Steps per second of the embedded world, and what the Controller's protocol costs: a ratio measured in one run.

python benchmarks/world_speed.py [--size 128] [--steps 400]
"""

from __future__ import annotations

import argparse
import statistics
import time

from selu.config import WorldSettings
from selu.records import Setup, Task
from selu.worlds.thor import ControllerSimulator, PlayerSimulator, ThorWorld

ACTIONS = ("RotateLeft", "MoveAhead", "RotateRight", "LookDown", "Open(Drawer)", "LookUp", "Approach(CounterTop)")
SETUP = Setup(spawn_seed=1, position=(0.0, 0.9, 0.0), rotation=0.0)


def steps_per_second(world: ThorWorld, steps: int) -> float:
    """Of a world stepped alone, resets not counted."""
    world.reset(options={"task": Task(task_id="speed", scene="FloorPlan17", kind="own", instruction="", setup=SETUP)})
    started = time.perf_counter()
    for k in range(steps):
        world.step(ACTIONS[k % len(ACTIONS)])
    return steps / (time.perf_counter() - started)


def main() -> None:
    """Time both in turn, five times, and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    settings = WorldSettings(width=arguments.size, height=arguments.size, max_steps=1000)
    worlds = {
        "through the Controller": ThorWorld(ControllerSimulator(settings), settings),
        "in process": ThorWorld(PlayerSimulator(settings), settings),
    }
    rates: dict[str, list[float]] = {name: [] for name in worlds}
    for _ in range(5):
        for name, world in worlds.items():
            rates[name].append(steps_per_second(world, arguments.steps))
    for world in worlds.values():
        world.close()
    for name, values in rates.items():
        print(f"{name}: median {statistics.median(values):.0f} steps/s (min {min(values):.0f}, max {max(values):.0f})")
    ratio = statistics.median(a / b for a, b in zip(*rates.values(), strict=True))
    print(f"ratio Controller / in process: {ratio:.2f} at {arguments.size}x{arguments.size}")


if __name__ == "__main__":
    main()
