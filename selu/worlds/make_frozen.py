"""Draws the frozen probe sets; run once, its product is shipped.

Probe A lies in the learning scenes (does it come to know *this* home?), probe B in the transfer scenes, never visited.

    python -m selu.worlds.make_frozen thor
    python -m selu.worlds.make_frozen three_steps
    python -m selu.worlds.make_frozen virtualhome
"""

from __future__ import annotations

import sys

from selu.config import TaskSettings, WorldSettings
from selu.worlds.base import World
from selu.worlds.tasks import FROZEN, THREE_STEPS, THREE_STEPS_LIMIT, generate_tasks, probe_set

KINDS = {
    "thor": ("pick_up", "open", "close", "toggle_on", "toggle_off", "put", "two_step", "break", "slice"),
    THREE_STEPS: ("three_step",),
    "virtualhome": ("open", "pick_up", "sit", "close", "toggle_on", "toggle_off"),
}
PROBES = {
    "thor": {"a": ("learning", 540, 20_241_004), "b": ("transfer", 270, 20_241_005)},
    THREE_STEPS: {"": ("learning", 120, 20_261_128)},
    "virtualhome": {"a": ("learning", 120, 20_261_120), "b": ("transfer", 60, 20_261_121)},
}
"""World (or the one set of longer tasks) -> probe -> split, tasks, seed."""


def _in_process(name: str) -> World:
    if name == "virtualhome":
        from selu.worlds.virtualhome import in_process

        return in_process(WorldSettings(name=name, skill_set=name))
    from selu.worlds.thor import PlayerSimulator, ThorWorld

    settings = WorldSettings() if name == "thor" else WorldSettings(max_steps=THREE_STEPS_LIMIT)
    return ThorWorld(PlayerSimulator(settings), settings)


def main() -> None:
    """Write the sets that are named."""
    name = sys.argv[1]
    FROZEN.mkdir(exist_ok=True)
    world = _in_process(name)
    for probe, (split, count, seed) in PROBES[name].items():
        settings = TaskSettings.model_validate({"split": split, "kinds": KINDS[name]})
        tasks = generate_tasks(settings, world, seed, count, freezing=True)
        lines = [task.model_dump_json() for task in tasks]
        file = probe_set(name, probe) if probe else name
        (FROZEN / f"{file}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{file}: {count} tasks in {len({t.scene for t in tasks})} scenes")


if __name__ == "__main__":
    main()
