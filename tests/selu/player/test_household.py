"""The embedded household: what it shows, what it refuses, and that it is the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selu.player.household import Household
from selu.player.layouts import load_layout, scene_names
from selu.player.shapes import INTERIOR
from selu.worlds.vocabulary import NAMES

GOLDEN = Path(__file__).parent / "golden"


def household(scene: str = "FloorPlan17", size: int = 96) -> Household:
    h = Household(size, size)
    h.act({"action": "Reset", "sceneName": scene})
    h.act({"action": "Initialize", "fieldOfView": 75, "visibilityDistance": 1.5, "gridSize": 0.25})
    return h


def stand_before(h: Household, object_type: str) -> str:
    """Stand where an object of the type shows best, before its front if one can; returns its id."""
    poses = []
    for name, thing in h.things.items():
        if thing.object_type != object_type or h.hidden(thing):
            continue
        axis, sign = thing.front
        for x, z in h.layout.reachable:
            gap = np.hypot(x - thing.centre[0], z - thing.centre[2])
            if gap > 1.6:
                continue
            yaw = np.degrees(np.arctan2(thing.centre[0] - x, thing.centre[2] - z))
            pose = {"action": "TeleportFull", "position": {"x": x, "z": z}, "rotation": {"y": yaw}, "horizon": 0}
            for pitch in (0, 30):
                h.act({**pose, "horizon": pitch})
                pixels = int(h.pixels()[h.instance_ids().index(name)])
                ahead = sign * ((x if axis == 0 else z) - thing.centre[axis]) > thing.size[axis] / 2 + 0.2
                if h.is_visible(thing):
                    poses.append((ahead, pixels, name, {**pose, "horizon": pitch}))
    assert poses, f"no {object_type} can be seen"
    _, _, name, pose = max(poses, key=lambda p: p[:2])
    h.act(pose)
    return name


def test_all_scenes_of_ithor_load_and_can_be_walked() -> None:
    assert len(scene_names()) == 120
    for scene in scene_names():
        assert len(load_layout(scene).reachable) >= 20
        assert any(o.object_type in NAMES for o in load_layout(scene).objects)


def test_the_same_actions_give_the_same_bytes() -> None:
    def play() -> list[bytes]:
        h = household()
        frames = []
        h.act({"action": "InitialRandomSpawn", "randomSeed": 5})
        for action in ("RotateRight", "MoveAhead", "RotateRight", "LookDown", "MoveAhead", "RotateLeft"):
            h.act({"action": action})
            frames.append(h.view().rgb.tobytes())
        return frames

    assert play() == play()


def test_another_spawn_seed_puts_things_elsewhere() -> None:
    places = []
    for seed in (1, 2):
        h = household()
        h.act({"action": "InitialRandomSpawn", "randomSeed": seed})
        places.append({n: t.centre for n, t in h.things.items() if t.can("pickupable")})
    assert places[0] != places[1]


@pytest.mark.parametrize("object_type", ["Fridge", "Microwave", "Cabinet", "Drawer"])
def test_an_open_thing_shows_its_interior_and_a_closed_one_does_not(object_type: str) -> None:
    h = household()
    name = stand_before(h, object_type)

    def interior() -> int:
        return int((np.abs(h.view().rgb.astype(int) - (np.array(INTERIOR) * 255).astype(int)).max(-1) < 3).sum())

    assert interior() == 0
    assert h.act({"action": "OpenObject", "objectId": name}).success
    assert interior() > 20


def test_contents_show_only_when_the_door_is_open() -> None:
    h = household()
    fridge = stand_before(h, "Fridge")
    apple = next(n for n, t in h.things.items() if t.object_type == "Apple")
    assert h.act({"action": "PickupObject", "objectId": apple, "forceAction": True}).success
    h.act({"action": "OpenObject", "objectId": fridge})
    assert h.act({"action": "PutObject", "objectId": fridge}).success
    assert h.pixels()[h.instance_ids().index(apple)] > 0
    h.act({"action": "CloseObject", "objectId": fridge})
    assert h.pixels()[h.instance_ids().index(apple)] == 0
    refused = h.act({"action": "PickupObject", "objectId": apple})
    assert not refused.success
    assert "not visible" in refused.message


def test_a_held_thing_is_in_view_until_it_is_dropped() -> None:
    h = household()
    mug = stand_before(h, "Mug")
    before = h.view().rgb.copy()
    assert h.act({"action": "PickupObject", "objectId": mug}).success
    held = h.view()
    assert (held.segmentation[60:] == h.instance_ids().index(mug)).sum() > 200
    assert not np.array_equal(before, held.rgb)
    assert h.act({"action": "DropHandObject"}).success
    assert h.held is None
    assert h.things[mug].centre[1] < 0.5


@pytest.mark.parametrize(
    ("action", "arguments", "message"),
    [
        ("PutObject", {}, "No object in hand"),
        ("DropHandObject", {}, "No object in hand"),
        ("FlyObject", {}, "Invalid action"),
        ("OpenObject", {"objectId": "Unicorn|1"}, "appears to be invalid"),
        ("OpenObject", {}, "needs an objectId"),
        ("LookUp", {"degrees": 90}, "Cannot look further"),
    ],
)
def test_what_ai2thor_would_refuse_is_refused(action: str, arguments: dict[str, object], message: str) -> None:
    h = household()
    stand_before(h, "Fridge")
    before = h.metadata("Pass", h.act({"action": "Pass"}))["objects"]
    request = {"action": action, **arguments}
    if action == "PutObject":
        request["objectId"] = "x"
    outcome = h.act(request)
    assert not outcome.success
    assert message in outcome.message
    assert h.metadata("Pass", h.act({"action": "Pass"}))["objects"] == before


def test_doors_refuse_twice_and_receptacles_refuse_when_closed() -> None:
    h = household()
    fridge = stand_before(h, "Fridge")
    mug = next(n for n, t in h.things.items() if t.object_type == "Mug")
    h.act({"action": "PickupObject", "objectId": mug, "forceAction": True})
    assert "CLOSED" in h.act({"action": "PutObject", "objectId": fridge}).message
    assert h.act({"action": "OpenObject", "objectId": fridge}).success
    assert "already open" in h.act({"action": "OpenObject", "objectId": fridge}).message
    assert "already" in h.act({"action": "PickupObject", "objectId": mug}).message


def test_every_state_changes_the_picture() -> None:
    for object_type, action in (
        ("Mug", "BreakObject"),
        ("Apple", "SliceObject"),
        ("Mug", "DirtyObject"),
        ("Mug", "FillObjectWithLiquid"),
        ("CoffeeMachine", "ToggleObjectOn"),
    ):
        h = household()
        name = stand_before(h, object_type)
        before = h.view().rgb.copy()
        assert h.act({"action": action, "objectId": name}).success, action
        assert (before != h.view().rgb).any(-1).sum() > 8, action


def test_nobody_walks_through_furniture() -> None:
    h = household()
    rng = np.random.default_rng(0)
    for _ in range(300):
        h.act({"action": ["MoveAhead", "RotateLeft", "MoveBack", "RotateRight"][rng.integers(4)], "moveMagnitude": 0.5})
        assert h.can_stand(h.x, h.z)


@pytest.mark.parametrize("scene", ["FloorPlan1", "FloorPlan201", "FloorPlan301", "FloorPlan401"])
def test_golden_frames(scene: str) -> None:
    h = household(scene)
    h.act({"action": "InitialRandomSpawn", "randomSeed": 1})
    h.act({"action": "RotateRight", "degrees": 45})
    path = GOLDEN / f"{scene}.png"
    if not path.exists():  # remade by deleting it, on purpose
        Image.fromarray(h.view().rgb).save(path)
        pytest.fail(f"{path.name} was missing and has been drawn; look at it and commit it")
    golden = np.asarray(Image.open(path)).astype(int)
    different = (np.abs(golden - h.view().rgb.astype(int)).max(-1) > 12).mean()
    assert different < 0.01
