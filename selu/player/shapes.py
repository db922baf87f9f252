"""What a thing looks like in its state: proxy geometry of boxes, cylinders and balls.

A shape is a list of parts in a local frame (forward, up, side) in metres, centred on the object's box; forward is the
side that faces the room. States must be readable from about 100 pixels across, so every open thing shows the same
vivid interior, everything that is on glows in the same colour, and everything broken or cut shows the same inner colour.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Colour = tuple[float, float, float]
Vector = tuple[float, float, float]
Kind = Literal["box", "cylinder", "ball"]

INTERIOR: Colour = (0.98, 0.18, 0.62)
GLOW: Colour = (1.0, 0.97, 0.35)
FRACTURE: Colour = (0.1, 0.95, 0.95)
CUT: Colour = (1.0, 1.0, 0.85)
DARK: Colour = (0.07, 0.06, 0.06)
LIQUID: Colour = (0.2, 0.55, 1.0)
DIRT: Colour = (0.33, 0.24, 0.12)

COLOURS: dict[str, Colour] = {
    "Mug": (0.12, 0.3, 0.95),
    "Bowl": (0.05, 0.72, 0.7),
    "Plate": (0.98, 0.98, 0.98),
    "Apple": (0.92, 0.06, 0.06),
    "Bread": (0.9, 0.6, 0.2),
    "Vase": (0.98, 0.5, 0.02),
    "Laptop": (0.3, 0.31, 0.36),
    "Pillow": (0.98, 0.76, 0.86),
    "Book": (0.52, 0.08, 0.55),
    "AlarmClock": (0.1, 0.1, 0.1),
    "Box": (0.5, 0.66, 0.12),
    "SprayBottle": (0.1, 0.6, 0.15),
    "ToiletPaper": (0.95, 0.95, 0.9),
    "Candle": (0.62, 0.5, 0.95),
    "Fridge": (0.68, 0.78, 0.92),
    "Microwave": (0.26, 0.26, 0.29),
    "Cabinet": (0.52, 0.3, 0.14),
    "Drawer": (0.82, 0.6, 0.36),
    "Toilet": (0.93, 0.93, 0.97),
    "DeskLamp": (0.3, 0.62, 0.32),
    "FloorLamp": (0.3, 0.3, 0.62),
    "Television": (0.08, 0.08, 0.1),
    "CoffeeMachine": (0.5, 0.05, 0.1),
    "CounterTop": (0.45, 0.46, 0.5),
    "DiningTable": (0.72, 0.45, 0.2),
    "Desk": (0.34, 0.24, 0.16),
    "SideTable": (0.52, 0.26, 0.24),
    "CoffeeTable": (0.72, 0.68, 0.42),
    "Bed": (0.36, 0.45, 0.82),
    "Sofa": (0.58, 0.16, 0.2),
    "Sink": (0.58, 0.74, 0.8),
    "GarbageCan": (0.3, 0.45, 0.36),
    "Dresser": (0.18, 0.36, 0.42),
    "Floor": (0.6, 0.5, 0.38),
}
"""Base colours; Sink and SinkBasin share one. Types outside the table are greyed, so that these stand out."""

ALIASES = {"SinkBasin": "Sink"}
TALL = {"SprayBottle": 0.45, "Vase": 0.7, "Candle": 0.5, "Statue": 0.6}
ROUND = {"Tomato", "Potato", "Egg", "Lettuce", "BasketBall", "HousePlant", "TeddyBear"}
CYLINDRICAL = {
    "Cup", "Pot", "Pan", "Bottle", "WineBottle", "SoapBottle", "SaltShaker", "PepperShaker", "PaperTowelRoll", "Kettle",
    "StoveBurner", "StoveKnob", "Stool", "LaundryHamper", "WateringCan", "Ottoman", "Plunger",
}  # fmt: skip


@dataclass(frozen=True)
class Appearance:
    """The visible state of an object."""

    is_open: bool = False
    is_on: bool = False
    is_broken: bool = False
    is_sliced: bool = False
    is_dirty: bool = False
    is_filled: bool = False


@dataclass(frozen=True)
class Part:
    """A primitive: centre and size in metres in (forward, up, side); ``glows`` colours are not shaded."""

    kind: Kind
    centre: Vector
    size: Vector
    colour: Colour
    glows: bool = False


def colour_of(object_type: str) -> Colour:
    """The base colour of a type; one outside the table gets a greyed colour of its own."""
    object_type = ALIASES.get(object_type, object_type)
    if object_type in COLOURS:
        return COLOURS[object_type]
    digest = int(hashlib.sha256(object_type.encode()).hexdigest(), 16)
    hue, saturation, value = digest % 997 / 997, (digest >> 20) % 100 / 100, (digest >> 40) % 100 / 100
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.2 + 0.3 * saturation, 0.5 + 0.3 * value)
    return (red * 0.4 + 0.27, green * 0.4 + 0.27, blue * 0.4 + 0.27)


def shape_of(object_type: str, size: Vector, appearance: Appearance = Appearance()) -> list[Part]:
    """The parts of an object whose box measures ``size`` metres in (forward, up, side)."""
    builder = _Builder(object_type, size, appearance)
    if appearance.is_broken:
        builder.shards()
    elif appearance.is_sliced:
        builder.slices()
    else:
        _SHAPES.get(ALIASES.get(object_type, object_type), _default)(builder)
        if appearance.is_dirty:
            builder.stains()
        if appearance.is_filled:
            builder.add("cylinder", (0, 0.5, 0), (0.75, 0.08, 0.75), LIQUID, glows=True)
    return builder.parts


class _Builder:
    """Collects parts; coordinates of :meth:`add` are fractions of the box, of :meth:`metric` metres."""

    def __init__(self, object_type: str, size: Vector, appearance: Appearance) -> None:
        self.object_type, self.size, self.look = object_type, size, appearance
        self.colour = colour_of(object_type)
        self.parts: list[Part] = []

    def shade(self, factor: float) -> Colour:
        r, g, b = self.colour
        return (min(1, r * factor), min(1, g * factor), min(1, b * factor))

    def add(self, kind: Kind, centre: Vector, size: Vector, colour: Colour, glows: bool = False) -> None:
        f, u, s = self.size
        self.metric(
            kind, (centre[0] * f, centre[1] * u, centre[2] * s), (size[0] * f, size[1] * u, size[2] * s), colour, glows
        )

    def metric(self, kind: Kind, centre: Vector, size: Vector, colour: Colour, glows: bool = False) -> None:
        thick = (max(size[0], 0.004), max(size[1], 0.004), max(size[2], 0.004))
        self.parts.append(Part(kind, centre, thick, colour, glows))

    def box(self, centre: Vector, size: Vector, colour: Colour, glows: bool = False) -> None:
        self.add("box", centre, size, colour, glows)

    def hollow(self, shelves: bool) -> None:
        """An open carcass: five outer walls, vivid inside."""
        c = self.shade(0.9)
        self.box((-0.49, 0, 0), (0.02, 1, 1), c)
        for sign in (1, -1):
            self.box((0, sign * 0.49, 0), (1, 0.02, 1), c)
            self.box((0, 0, sign * 0.49), (1, 1, 0.02), c)
            self.box((0, sign * 0.475, 0), (0.96, 0.01, 0.94), INTERIOR, True)
            self.box((0, 0, sign * 0.475), (0.96, 0.94, 0.01), INTERIOR, True)
        self.box((-0.475, 0, 0), (0.01, 0.94, 0.94), INTERIOR, True)
        if shelves:
            for height in (0.16, -0.18):
                self.box((-0.1, height, 0), (0.7, 0.02, 0.94), self.shade(0.8))

    def shards(self) -> None:
        """Flat pieces on the spot, showing the inner colour that all broken things share."""
        f, _, s = self.size
        span = max(f, s, 0.24)
        bottom = -self.size[1] / 2
        if self.object_type in ("Television", "Mirror", "Window"):
            self.box((0, 0, 0), (1, 1, 1), self.shade(0.6))
            for k in range(5):
                self.box((0.1, -0.4 + 0.2 * k, 0.18 * (-1) ** k), (1.1, 0.06, 0.6), FRACTURE, True)
            return
        for k in range(9):
            row, column = divmod(k, 3)
            centre = ((row - 1) * span * 0.36, bottom + 0.02 + 0.012 * (k % 3), (column - 1) * span * 0.36)
            size = (span * 0.26, 0.035 + 0.03 * (k % 2), span * (0.2 + 0.05 * (k % 2)))
            self.metric("box", centre, size, FRACTURE if k % 2 else self.colour, bool(k % 2))

    def slices(self) -> None:
        """Slabs standing apart, their cut faces in the colour that all sliced things share."""
        for k in range(4):
            position = (k - 1.5) * 0.34
            self.add(
                "cylinder" if self.object_type != "Bread" else "box",
                (0, -0.1, position),
                (0.95, 0.8, 0.18),
                self.colour,
            )
            self.box((0, -0.1, position + 0.1), (0.8, 0.66, 0.03), CUT, True)
            self.box((0, 0.31, position), (0.6, 0.04, 0.2), CUT, True)

    def stains(self) -> None:
        for k in range(3):
            self.box((0.3 * (k - 1), 0.1 * (k - 1), 0.25 * (-1) ** k), (0.5, 0.5, 0.58), DIRT)


def _default(b: _Builder) -> None:
    kind: Kind = "ball" if b.object_type in ROUND else "cylinder" if b.object_type in CYLINDRICAL else "box"
    b.add(kind, (0, 0, 0), (1, 1, 1), b.colour)
    if b.look.is_on:
        b.box((0, 0.3, 0), (1.04, 0.2, 1.04), GLOW, True)
    if b.look.is_open:
        b.box((0, 0.5, 0), (0.8, 0.06, 0.8), INTERIOR, True)


def _mug(b: _Builder) -> None:
    b.add("cylinder", (0, 0, -0.1), (0.85, 1, 0.75), b.colour)
    b.box((0, 0.12, 0.4), (0.25, 0.5, 0.22), b.shade(0.75))
    b.add("cylinder", (0, 0.48, -0.1), (0.65, 0.06, 0.55), DARK)


def _bowl(b: _Builder) -> None:
    b.add("cylinder", (0, -0.3, 0), (0.6, 0.4, 0.6), b.shade(0.8))
    b.add("cylinder", (0, 0.2, 0), (1, 0.6, 1), b.colour)
    b.add("cylinder", (0, 0.5, 0), (0.85, 0.05, 0.85), b.shade(0.45))


def _plate(b: _Builder) -> None:
    b.add("cylinder", (0, 0, 0), (1, 1, 1), b.colour)
    b.add("cylinder", (0, 0.5, 0), (0.62, 0.2, 0.62), (0.35, 0.5, 0.95))


def _apple(b: _Builder) -> None:
    b.add("ball", (0, -0.05, 0), (1, 0.95, 1), b.colour)
    b.box((0, 0.45, 0), (0.1, 0.25, 0.1), (0.2, 0.45, 0.1))


def _bread(b: _Builder) -> None:
    b.box((0, -0.1, 0), (0.95, 0.8, 1), b.colour)
    b.add("ball", (0, 0.25, 0), (0.9, 0.5, 1), b.shade(0.8))


def _vase(b: _Builder) -> None:
    b.add("ball", (0, -0.15, 0), (1, 0.75, 1), b.colour)
    b.add("cylinder", (0, 0.3, 0), (0.4, 0.4, 0.4), b.colour)
    b.add("cylinder", (0, 0.48, 0), (0.6, 0.08, 0.6), b.shade(0.7))


def _laptop(b: _Builder) -> None:
    f, u, s = b.size
    bottom = -u / 2
    b.metric("box", (0, bottom + 0.02, 0), (f, 0.04, s), b.colour)
    if not b.look.is_open:
        b.metric("box", (0, bottom + 0.05, 0), (f, 0.02, s), b.shade(1.3))
        b.metric("box", (0, bottom + 0.062, 0), (f * 0.25, 0.006, s * 0.2), (0.92, 0.92, 0.95))
        return
    height = max(f, 0.24)
    b.metric("box", (0.03, bottom + 0.044, 0), (f * 0.7, 0.008, s * 0.85), INTERIOR, True)
    b.metric("box", (-f / 2, bottom + height / 2, 0), (0.03, height, s), b.colour)
    screen = GLOW if b.look.is_on else INTERIOR
    b.metric("box", (-f / 2 + 0.018, bottom + height / 2 + 0.01, 0), (0.012, height * 0.8, s * 0.88), screen, True)


def _pillow(b: _Builder) -> None:
    b.add("ball", (0, 0, 0), (1.1, 1, 1.1), b.colour)
    b.box((0, 0, 0), (0.9, 0.6, 0.9), b.shade(0.94))


def _book(b: _Builder) -> None:
    b.box((0, 0, 0), (1, 1, 1), b.colour)
    b.box((0.04, 0, 0), (1, 0.6, 0.9), (0.95, 0.93, 0.85))
    if b.look.is_open:
        b.box((0, 0.5, 0), (0.95, 0.15, 0.95), INTERIOR, True)


def _alarm_clock(b: _Builder) -> None:
    b.box((0, 0, 0), (1, 1, 1), b.colour)
    for sign in (1, -1):
        b.box((sign * 0.5, 0, 0), (0.06, 0.65, 0.75), (0.15, 0.95, 0.3))
        b.box((0, 0, sign * 0.5), (0.75, 0.65, 0.06), (0.15, 0.95, 0.3))


def _box(b: _Builder) -> None:
    f, u, s = b.size
    if not b.look.is_open:
        b.box((0, 0, 0), (1, 1, 1), b.colour)
        b.box((0, 0.49, 0), (1.01, 0.04, 0.14), b.shade(0.5))
        b.box((0.5, 0, 0), (0.02, 0.3, 0.14), b.shade(0.5))
        return
    b.box((0, -0.48, 0), (1, 0.04, 1), b.shade(0.6))
    for sign in (1, -1):
        b.box((sign * 0.48, 0, 0), (0.04, 1, 1), b.colour)
        b.box((0, 0, sign * 0.48), (1, 1, 0.04), b.shade(0.9))
        b.box((sign * 0.45, 0, 0), (0.02, 0.96, 0.9), INTERIOR, True)
        b.box((0, 0, sign * 0.45), (0.9, 0.96, 0.02), INTERIOR, True)
        b.metric("box", (0, u * 0.48, sign * (s / 2 + s * 0.16)), (f, 0.02, s * 0.34), INTERIOR, True)
        b.metric("box", (sign * (f / 2 + f * 0.16), u * 0.48, 0), (f * 0.34, 0.02, s), INTERIOR, True)


def _spray_bottle(b: _Builder) -> None:
    b.add("cylinder", (0, -0.15, 0), (0.9, 0.7, 0.9), b.colour)
    b.add("cylinder", (0, 0.28, 0), (0.35, 0.25, 0.35), (0.95, 0.95, 0.95))
    b.box((0.15, 0.44, 0), (0.8, 0.12, 0.35), (0.95, 0.95, 0.95))


def _toilet_paper(b: _Builder) -> None:
    b.add("cylinder", (0, 0, 0), (1, 1, 1), b.colour)
    b.add("cylinder", (0, 0.5, 0), (0.4, 0.04, 0.4), (0.4, 0.3, 0.2))
    b.add("cylinder", (0, 0, 0), (1.02, 0.22, 1.02), (0.98, 0.6, 0.45))


def _candle(b: _Builder) -> None:
    b.add("cylinder", (0, -0.15, 0), (0.8, 0.7, 0.8), b.colour)
    b.add("cylinder", (0, -0.46, 0), (1.1, 0.08, 1.1), b.shade(0.5))
    b.box((0, 0.24, 0), (0.08, 0.1, 0.08), DARK)
    if b.look.is_on:
        b.add("ball", (0, 0.5, 0), (0.75, 0.55, 0.75), GLOW, True)


def _hinged(b: _Builder, shelves: bool, handle: Colour) -> None:
    f, u, s = b.size
    if not b.look.is_open:
        b.box((0, 0, 0), (1, 1, 1), b.colour)
        b.metric("box", (f / 2 + 0.02, u * 0.05, s * 0.38), (0.05, u * 0.35, max(0.03, s * 0.05)), handle)
        return
    b.hollow(shelves)
    # The door swings ninety degrees about its side; its inner face is vivid too.
    b.metric("box", (f / 2 + s / 2, 0, -s / 2), (s, u * 0.97, 0.03), b.shade(0.9))
    b.metric("box", (f / 2 + s / 2, 0, -s / 2 + 0.02), (s * 0.92, u * 0.9, 0.012), INTERIOR, True)


def _fridge(b: _Builder) -> None:
    _hinged(b, True, DARK)
    if not b.look.is_open:
        b.box((0.505, 0.2, 0), (0.01, 0.015, 1), b.shade(0.3))


def _microwave(b: _Builder) -> None:
    _hinged(b, False, (0.85, 0.85, 0.88))
    if not b.look.is_open:
        b.box((0.51, 0, -0.12), (0.02, 0.7, 0.6), GLOW if b.look.is_on else DARK, b.look.is_on)


def _cabinet(b: _Builder) -> None:
    _hinged(b, True, (0.95, 0.85, 0.4))


def _drawer(b: _Builder) -> None:
    f, u, s = b.size
    if not b.look.is_open:
        b.box((0, 0, 0), (1, 1, 1), b.colour)
        b.metric("box", (f / 2 + 0.01, 0, 0), (0.03, max(0.03, u * 0.16), s * 0.36), DARK)
        return
    length = min(0.35, max(0.22, f))
    b.box((-0.05, 0, 0), (0.9, 1, 1), b.shade(0.3))
    b.metric("box", (f / 2 + length, 0, 0), (0.025, u, s), b.colour)
    b.metric("box", (f / 2 + length + 0.02, 0, 0), (0.03, max(0.03, u * 0.16), s * 0.36), DARK)
    b.metric("box", (f / 2 + length / 2, -u * 0.1, 0), (length, 0.02, s * 0.95), INTERIOR, True)
    for sign in (1, -1):
        b.metric("box", (f / 2 + length / 2, -u * 0.05, sign * s * 0.47), (length, u * 0.8, 0.02), b.shade(0.8))
        b.metric(
            "box", (f / 2 + length / 2, -u * 0.02, sign * (s * 0.47 - 0.015)), (length, u * 0.7, 0.01), INTERIOR, True
        )
    b.metric("box", (f / 2 + length - 0.02, 0, 0), (0.01, u * 0.8, s * 0.9), INTERIOR, True)


def _toilet(b: _Builder) -> None:
    lid = (0.85, 0.55, 0.5)
    b.add("cylinder", (0.15, -0.25, 0), (0.7, 0.45, 0.75), b.colour)
    b.box((-0.38, 0.1, 0), (0.24, 0.8, 0.8), b.shade(0.9))
    if b.look.is_open:
        b.add("cylinder", (0.15, 0, 0), (0.58, 0.05, 0.62), INTERIOR, True)
        b.box((-0.22, 0.3, 0), (0.05, 0.55, 0.72), lid)
        b.box((-0.185, 0.3, 0), (0.02, 0.48, 0.62), INTERIOR, True)
    else:
        b.add("cylinder", (0.15, 0.02, 0), (0.74, 0.09, 0.79), lid)


def _lamp(b: _Builder) -> None:
    height = 0.42 if b.object_type == "DeskLamp" else 0.26
    b.add("cylinder", (0, -0.47, 0), (0.7, 0.06, 0.7), b.shade(0.5))
    b.add("cylinder", (0, -0.1, 0), (0.12, 0.8, 0.12), b.shade(0.5))
    b.add("cylinder", (0, 0.5 - height / 2, 0), (1, height, 1), GLOW if b.look.is_on else b.shade(0.8), b.look.is_on)


def _television(b: _Builder) -> None:
    b.box((-0.1, 0.05, 0), (0.4, 0.85, 1), b.colour)
    b.box((0, -0.45, 0), (0.6, 0.1, 0.5), b.colour)
    for sign in (1, -1):
        screen: Colour = GLOW if b.look.is_on else (0.2, 0.2, 0.26)
        b.box((-0.1 + sign * 0.22, 0.05, 0), (0.04, 0.75, 0.92), screen, b.look.is_on)


def _coffee_machine(b: _Builder) -> None:
    b.box((-0.25, 0, 0), (0.5, 1, 1), b.colour)
    b.box((0, 0.35, 0), (1, 0.3, 1), b.colour)
    b.box((0, -0.45, 0), (1, 0.1, 1), b.shade(0.6))
    b.add("cylinder", (0.2, -0.18, 0), (0.45, 0.4, 0.5), (0.75, 0.78, 0.8))
    if b.look.is_on:
        for sign in (1, -1):
            b.box((0, 0.35, sign * 0.5), (0.9, 0.24, 0.04), GLOW, True)
        b.box((0.5, 0.35, 0), (0.06, 0.26, 0.95), GLOW, True)
        b.box((0, 0.5, 0), (0.9, 0.05, 0.9), GLOW, True)


def _table(b: _Builder) -> None:
    b.box((0, 0.46, 0), (1, 0.08, 1), b.colour)
    for forward in (-0.42, 0.42):
        for side in (-0.42, 0.42):
            b.box((forward, -0.04, side), (0.09, 0.92, 0.09), b.shade(0.7))
    if b.object_type == "SideTable":
        b.box((0, 0.1, 0), (0.85, 0.25, 0.85), b.shade(0.8))
    if b.object_type == "Desk":
        b.box((-0.45, 0, 0), (0.05, 0.9, 0.95), b.shade(0.85))


def _chair(b: _Builder) -> None:
    b.box((0, -0.05, 0), (0.9, 0.08, 0.9), b.colour)
    b.box((-0.42, 0.25, 0), (0.08, 0.5, 0.9), b.colour)
    for forward in (-0.4, 0.4):
        for side in (-0.4, 0.4):
            b.box((forward, -0.27, side), (0.1, 0.46, 0.1), b.shade(0.7))


def _bed(b: _Builder) -> None:
    b.box((0, -0.2, 0), (1, 0.5, 1), b.colour)
    b.box((-0.46, 0, 0), (0.08, 1, 1), b.shade(0.5))
    b.box((0.3, 0.06, 0), (0.38, 0.03, 1.01), (0.85, 0.88, 0.95))


def _sofa(b: _Builder) -> None:
    b.box((0.1, -0.25, 0), (0.8, 0.5, 1), b.colour)
    b.box((-0.38, 0, 0), (0.24, 1, 1), b.shade(0.85))
    for side in (-0.44, 0.44):
        b.box((0.1, -0.1, side), (0.8, 0.7, 0.12), b.shade(0.7))


def _sink(b: _Builder) -> None:
    b.box((0, 0, 0), (1, 1, 1), b.colour)
    b.box((0, 0.49, 0), (0.75, 0.06, 0.75), b.shade(0.5))


def _garbage_can(b: _Builder) -> None:
    b.add("cylinder", (0, 0, 0), (0.9, 1, 0.9), b.colour)
    b.add("cylinder", (0, 0.5, 0), (0.8, 0.03, 0.8), DARK)
    b.add("cylinder", (0, 0.42, 0), (1, 0.08, 1), b.shade(0.65))


_SHAPES: dict[str, Callable[[_Builder], None]] = {
    "Mug": _mug,
    "Cup": _mug,
    "Bowl": _bowl,
    "Plate": _plate,
    "Apple": _apple,
    "Bread": _bread,
    "Vase": _vase,
    "Laptop": _laptop,
    "Pillow": _pillow,
    "Book": _book,
    "AlarmClock": _alarm_clock,
    "Box": _box,
    "SprayBottle": _spray_bottle,
    "ToiletPaper": _toilet_paper,
    "Candle": _candle,
    "Fridge": _fridge,
    "Microwave": _microwave,
    "Cabinet": _cabinet,
    "Safe": _cabinet,
    "Drawer": _drawer,
    "Toilet": _toilet,
    "DeskLamp": _lamp,
    "FloorLamp": _lamp,
    "Television": _television,
    "CoffeeMachine": _coffee_machine,
    "DiningTable": _table,
    "Desk": _table,
    "SideTable": _table,
    "CoffeeTable": _table,
    "Chair": _chair,
    "Bed": _bed,
    "Sofa": _sofa,
    "ArmChair": _sofa,
    "Sink": _sink,
    "GarbageCan": _garbage_can,
    # VirtualHome's
    "Stove": _cabinet,
    "Dishwasher": _cabinet,
    "WashingMachine": _cabinet,
    "Computer": _television,
}
