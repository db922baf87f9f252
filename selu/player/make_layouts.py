"""Trims public iTHOR metadata to the layouts that the embedded player needs.

Run once; its product is shipped. Sources, both on PyPI: ``procthor==0.0.1.dev2`` (Apache-2.0, Allen Institute for AI)
holds AI2-THOR's metadata of all 120 iTHOR scenes; ``alfworld==0.4.2`` (MIT) holds their reachable-position grids.

    python -m selu.player.make_layouts PROCTHOR_WHEEL ALFWORLD_WHEEL
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from selu.player.layouts import FLAGS, LAYOUTS_FILE, ROOM_OFFSETS

DATABASE = "procthor/databases/ai2thor-object-metadata.json"


def trim(procthor_wheel: Path, alfworld_wheel: Path) -> dict[str, Any]:
    """Layouts of the 120 scenes: objects (id, type, box in metres, flags, state, receptacles) and reachable (x, z)."""
    with zipfile.ZipFile(procthor_wheel) as wheel:
        database = json.loads(wheel.read(DATABASE))
    scenes: dict[str, Any] = {}
    with zipfile.ZipFile(alfworld_wheel) as wheel:
        for room, offset in ROOM_OFFSETS.items():
            for number, objects in enumerate(database[room], start=1):
                name = f"FloorPlan{offset + number}"
                grid = np.load(io.BytesIO(wheel.read(f"alfworld/gen/layouts/{name}-layout.npy")))
                scenes[name] = {
                    "reachable": sorted([round(float(x), 2), round(float(z), 2)] for x, z in grid[:, :2]),
                    "objects": [_trim_object(o) for o in sorted(objects, key=lambda o: str(o["objectId"]))],
                }
    return scenes


def _trim_object(o: dict[str, Any]) -> dict[str, Any]:
    box = o["axisAlignedBoundingBox"]
    row: dict[str, Any] = {
        "id": o["objectId"],
        "type": o["objectType"],
        "centre": [round(box["center"][k], 3) for k in "xyz"],
        "size": [round(box["size"][k], 3) for k in "xyz"],
        "flags": [f for f in FLAGS if o[f]],
    }
    if o["parentReceptacles"]:
        row["parents"] = o["parentReceptacles"]
    if o["isOpen"]:
        row["open"] = True
    if o["isToggled"]:
        row["on"] = True
    return row


def main() -> None:
    """Write the trimmed file beside this module."""
    scenes = trim(Path(sys.argv[1]), Path(sys.argv[2]))
    text = json.dumps(scenes, separators=(",", ":"), sort_keys=True).encode()
    LAYOUTS_FILE.write_bytes(gzip.compress(text, 9, mtime=0))
    print(f"{len(scenes)} scenes, {sum(len(s['objects']) for s in scenes.values())} objects -> {LAYOUTS_FILE.name}")


if __name__ == "__main__":
    main()
