"""Draws the frozen probe sets; run once, its product is shipped.

Probe A lies in the learning scenes (does it come to know *this* home?), probe B in the transfer scenes, never visited.

    python -m selu.worlds.make_frozen thor
    python -m selu.worlds.make_frozen virtualhome
"""

from __future__ import annotations

import sys

from selu.config import TaskSettings, WorldSettings
from selu.worlds.base import World
from selu.worlds.tasks import FROZEN, generate_tasks, probe_set

KINDS = {
    "thor": ("pick_up", "open", "close", "toggle_on", "toggle_off", "put", "two_step", "break", "slice"),
    "virtualhome": ("open", "pick_up", "sit", "close", "toggle_on", "toggle_off"),
}
PROBES = {
    "thor": {"a": ("learning", 540, 20_241_004), "b": ("transfer", 270, 20_241_005)},
    "virtualhome": {"a": ("learning", 120, 20_261_120), "b": ("transfer", 60, 20_261_121)},
}
"""World -> probe -> split, tasks, seed."""


def _in_process(name: str) -> World:
    if name == "virtualhome":
        from selu.worlds.virtualhome import in_process

        return in_process(WorldSettings(name=name, skill_set=name))
    from selu.worlds.thor import PlayerSimulator, ThorWorld

    settings = WorldSettings()
    return ThorWorld(PlayerSimulator(settings), settings)


def main() -> None:
    """Write both sets of the world that is named."""
    name = sys.argv[1]
    FROZEN.mkdir(exist_ok=True)
    world = _in_process(name)
    for probe, (split, count, seed) in PROBES[name].items():
        settings = TaskSettings.model_validate({"split": split, "kinds": KINDS[name]})
        tasks = generate_tasks(settings, world, seed, count, freezing=True)
        lines = [task.model_dump_json() for task in tasks]
        (FROZEN / f"{probe_set(name, probe)}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name} {probe}: {count} tasks in {len({t.scene for t in tasks})} scenes")


if __name__ == "__main__":
    main()
