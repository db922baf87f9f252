"""Draws the frozen probe sets; run once, its product is shipped.

Probe A lies in the learning scenes (does it come to know *this* home?), probe B in the transfer scenes, never visited.

    python -m selu.worlds.make_frozen
"""

from __future__ import annotations

from selu.config import TaskSettings, WorldSettings
from selu.worlds.tasks import FROZEN, generate_tasks
from selu.worlds.thor import PlayerSimulator, ThorWorld

KINDS = ("pick_up", "open", "close", "toggle_on", "toggle_off", "put", "two_step", "break", "slice")
PROBES = {"probe_a": ("learning", 540, 20_241_004), "probe_b": ("transfer", 270, 20_241_005)}
"""Name -> split, tasks, seed."""


def main() -> None:
    """Write both sets."""
    FROZEN.mkdir(exist_ok=True)
    settings = WorldSettings()
    world = ThorWorld(PlayerSimulator(settings), settings)
    for name, (split, count, seed) in PROBES.items():
        tasks = generate_tasks(
            TaskSettings.model_validate({"split": split, "kinds": KINDS}), world, seed, count, freezing=True
        )
        lines = [task.model_dump_json() for task in tasks]
        (FROZEN / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {count} tasks in {len({t.scene for t in tasks})} scenes")


if __name__ == "__main__":
    main()
