"""The object types that the embedded model has words for, and the words.

Every AI2-THOR type may be used in an instruction; these are the ones the embedded base model was trained to name.
"""

from __future__ import annotations

import re

NAMES: dict[str, str] = {
    "Mug": "mug",
    "Bowl": "bowl",
    "Plate": "plate",
    "Apple": "apple",
    "Bread": "bread",
    "Vase": "vase",
    "Laptop": "laptop",
    "Pillow": "pillow",
    "Book": "book",
    "AlarmClock": "alarm clock",
    "Box": "box",
    "SprayBottle": "spray bottle",
    "ToiletPaper": "toilet paper",
    "Candle": "candle",
    "Fridge": "fridge",
    "Microwave": "microwave",
    "Cabinet": "cabinet",
    "Drawer": "drawer",
    "Toilet": "toilet",
    "DeskLamp": "desk lamp",
    "FloorLamp": "floor lamp",
    "Television": "television",
    "CoffeeMachine": "coffee machine",
    "CounterTop": "countertop",
    "DiningTable": "dining table",
    "Desk": "desk",
    "SideTable": "side table",
    "CoffeeTable": "coffee table",
    "Bed": "bed",
    "Sofa": "sofa",
    "Sink": "sink",
    "GarbageCan": "garbage can",
    "Dresser": "dresser",
}
"""AI2-THOR type -> spoken name."""

OTHER_NAMES: dict[str, str] = {
    "Chair": "chair",
    "ArmChair": "arm chair",
    "Bench": "bench",
    "Stove": "stove",
    "Dishwasher": "dishwasher",
    "WashingMachine": "washing machine",
    "Radio": "radio",
    "Computer": "computer",
}
"""Types that only VirtualHome has tasks about, for which the embedded base model has no words -> spoken name."""

CHARACTER = "Character"
"""The actor's own body, a thing like any other in VirtualHome's graphs: who sits on a sofa is on it."""

SAME_TYPE = {"SinkBasin": "Sink", "BathtubBasin": "Bathtub"}
"""AI2-THOR type -> the type that it is called by: one says sink, and means what is inside it."""

_TYPES = {name: object_type for object_type, name in (NAMES | OTHER_NAMES).items()}


def spoken_name(object_type: str) -> str:
    """The spoken name of any AI2-THOR type: ``ArmChair`` -> ``arm chair``."""
    return NAMES.get(object_type) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", object_type).lower()


def type_of(name: str) -> str | None:
    """The type a spoken name stands for, or None for a name outside the vocabulary."""
    return _TYPES.get(name.strip().lower())
