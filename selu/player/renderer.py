"""First-person pictures of a household, ray-cast on the CPU with Embree.

Pinhole camera with square pixels; ``fov`` is the vertical field of view in degrees, as in AI2-THOR. Coordinates are
Unity's: x right, y up, z forward, yaw clockwise from above, positive pitch looks down.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh
from numpy.typing import NDArray

from selu.player.shapes import Appearance, Kind, Part, Vector, shape_of

Floats = NDArray[np.float32]
CAMERA_ABOVE_AGENT = 0.675
"""Height of the camera above the agent's centre in metres, as in AI2-THOR."""
HELD_SHARE = 0.36
"""Width of the held object's picture as a share of the frame."""
WALL = (0.86, 0.83, 0.78)
CEILING = (0.9, 0.9, 0.88)
BACKGROUND = (0.62, 0.6, 0.57)
"""Where a ray slips out of the room."""
WALL_HEIGHT = 2.6


@dataclass(frozen=True)
class Mesh:
    """Triangles ``(N, 3, 3)`` in metres, with unit normals ``(N, 3)``, colours ``(N, 3)`` and glow ``(N,)``."""

    triangles: Floats
    normals: Floats
    colours: Floats
    glows: NDArray[np.bool_]


@dataclass(frozen=True)
class View:
    """A picture ``(H, W, 3) uint8``, the object index of each pixel ``(H, W) int32`` (-1: none), depth in metres."""

    rgb: NDArray[np.uint8]
    segmentation: NDArray[np.int32]
    depth: Floats


@dataclass(frozen=True)
class Pose:
    """Where the agent is (metres) and looks (degrees)."""

    x: float
    y: float
    z: float
    yaw: float
    pitch: float


@cache
def _unit(kind: Kind) -> tuple[Floats, Floats]:
    """Triangles and normals of a primitive that fills the unit cube."""
    if kind == "box":
        faces = []
        for axis in range(3):
            for sign in (-0.5, 0.5):
                u, v = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3]
                c = np.eye(3)[axis] * sign
                a, b, d, e = c - (u + v) / 2, c + (u - v) / 2, c + (u + v) / 2, c + (v - u) / 2
                faces += [[a, b, d], [a, d, e]] if sign > 0 else [[a, d, b], [a, e, d]]
        triangles = np.array(faces)
    elif kind == "cylinder":
        angle = np.linspace(0, 2 * np.pi, 15)
        rim = np.stack([np.cos(angle) / 2, np.sin(angle) / 2], 1)
        faces = []
        for p, q in itertools.pairwise(rim):
            low_p, low_q, top_p, top_q = (np.array([r[0], h, r[1]]) for h in (-0.5, 0.5) for r in (p, q))
            faces += [[low_p, top_q, low_q], [low_p, top_p, top_q]]
            faces += [[[0, 0.5, 0], top_q, top_p], [[0, -0.5, 0], low_p, low_q]]
        triangles = np.array(faces)
    else:
        rows, columns = 7, 12
        polar, azimuth = np.linspace(0, np.pi, rows), np.linspace(0, 2 * np.pi, columns + 1)
        grid = np.stack(
            [
                np.outer(np.sin(polar), np.cos(azimuth)),
                np.outer(np.cos(polar), np.ones(columns + 1)),
                np.outer(np.sin(polar), np.sin(azimuth)),
            ],
            -1,
        )
        faces = []
        for i in range(rows - 1):
            for j in range(columns):
                a, b, c, d = grid[i, j], grid[i, j + 1], grid[i + 1, j + 1], grid[i + 1, j]
                faces += [f for f in ([a, b, c], [a, c, d]) if len({tuple(np.round(p, 6)) for p in f}) == 3]
        triangles = np.array(faces) / 2
    return triangles.astype(np.float32), _normals(triangles.astype(np.float32))


def _normals(triangles: Floats) -> Floats:
    n = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    length = np.linalg.norm(n, axis=1, keepdims=True)
    unit: Floats = (n / np.maximum(length, 1e-12)).astype(np.float32)
    return unit


def build_mesh(parts: Sequence[Part], centre: Vector, axis: int, sign: int) -> Mesh:
    """The mesh of a shape at ``centre`` (x, y, z) whose forward is ``sign`` times the x (0) or z (2) axis."""
    side = 2 - axis
    triangles, normals, colours, glows = [], [], [], []
    for part in parts:
        position, size = np.array(centre, np.float32), np.zeros(3, np.float32)
        position[axis] += sign * part.centre[0]
        position[1] += part.centre[1]
        position[side] += part.centre[2]
        size[axis], size[1], size[side] = part.size
        unit, normal = _unit(part.kind)
        triangles.append(unit * size + position)
        normals.append(normal)
        colours.append(np.tile(np.array(part.colour, np.float32), (len(unit), 1)))
        glows.append(np.full(len(unit), part.glows))
    return Mesh(np.concatenate(triangles), np.concatenate(normals), np.concatenate(colours), np.concatenate(glows))


def room_mesh(low: Vector, high: Vector) -> Mesh:
    """Four walls and a ceiling around the box from ``low`` to ``high``."""
    (x0, _, z0), (x1, _, z1) = low, high
    h, mx, mz = WALL_HEIGHT, (x0 + x1) / 2, (z0 + z1) / 2
    parts = [
        Part("box", (x0 - 0.03, h / 2, mz), (0.05, h, z1 - z0), WALL),
        Part("box", (x1 + 0.03, h / 2, mz), (0.05, h, z1 - z0), WALL),
        Part("box", (mx, h / 2, z0 - 0.03), (x1 - x0, h, 0.05), WALL),
        Part("box", (mx, h / 2, z1 + 0.03), (x1 - x0, h, 0.05), WALL),
        Part("box", (mx, h, mz), (x1 - x0, 0.05, z1 - z0), CEILING),
    ]
    return build_mesh(parts, (0, 0, 0), 0, 1)


class Renderer:
    """Casts one ray a pixel into the current meshes."""

    def __init__(self, width: int, height: int, fov: float) -> None:
        self.configure(width, height, fov)

    def configure(self, width: int, height: int, fov: float) -> None:
        """Set the picture's size in pixels and the vertical field of view in degrees."""
        self.width, self.height, self.fov = width, height, fov
        k = np.tan(np.radians(fov / 2))
        x, y = np.meshgrid(
            ((np.arange(width) + 0.5) / width * 2 - 1) * k * width / height,
            -((np.arange(height) + 0.5) / height * 2 - 1) * k,
        )
        rays = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)
        self._rays: Floats = (rays / np.linalg.norm(rays, axis=1, keepdims=True)).astype(np.float32)

    def load(self, meshes: Sequence[tuple[int, Mesh]], floor: int) -> None:
        """Take the scene as (object index, mesh) pairs; ``floor`` is the index that gets tiles (-1: none)."""
        self._floor = floor
        self._normals = np.concatenate([m.normals for _, m in meshes])
        self._colours = np.concatenate([m.colours for _, m in meshes])
        self._glows = np.concatenate([m.glows for _, m in meshes])
        self._owner = np.concatenate([np.full(len(m.triangles), i, np.int32) for i, m in meshes])
        self._scene = rtcore_scene.EmbreeScene()
        TriangleMesh(self._scene, np.ascontiguousarray(np.concatenate([m.triangles for _, m in meshes]), np.float32))

    def render(self, pose: Pose, held: tuple[int, str, Appearance] | None = None) -> View:
        """The view from a pose; a held object (index, type, look) shows in front of everything, low in the middle."""
        yaw, pitch = np.radians(pose.yaw), np.radians(pose.pitch)
        forward = np.array([np.sin(yaw) * np.cos(pitch), -np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
        right = np.array([np.cos(yaw), 0, -np.sin(yaw)])
        basis = np.stack([right, np.cross(forward, right), forward]).astype(np.float32)
        rays = self._rays @ basis
        eye = np.array([pose.x, pose.y + CAMERA_ABOVE_AGENT, pose.z], np.float32)
        hits = self._scene.run(np.broadcast_to(eye, rays.shape).copy(), rays, query="INTERSECT", output=1)
        hit = hits["primID"] >= 0
        triangle = np.where(hit, hits["primID"], 0)
        depth = np.where(hit, hits["tfar"], 0.0).astype(np.float32)
        normal = self._normals[triangle]
        facing = np.abs((normal * rays).sum(1))
        shade = 0.62 + 0.16 * normal[:, 1] + 0.12 * np.abs(normal[:, 0]) + 0.18 * facing
        owner = np.where(hit, self._owner[triangle], -1)
        if self._floor >= 0:
            ground = np.floor((eye[0] + rays[:, 0] * depth) * 2) + np.floor((eye[2] + rays[:, 2] * depth) * 2)
            shade = np.where((owner == self._floor) & (ground % 2 > 0), shade * 0.85, shade)
        shade = np.where(self._glows[triangle], 1.0, shade)
        colour = np.where(hit[:, None], self._colours[triangle] * shade[:, None], np.array(BACKGROUND, np.float32))
        shape = (self.height, self.width)
        rgb = (np.clip(colour, 0, 1) * 255).astype(np.uint8).reshape(*shape, 3)
        segmentation = owner.astype(np.int32).reshape(shape)
        if held is not None:
            index, object_type, look = held
            picture, mask = held_picture(object_type, look, int(min(shape) * HELD_SHARE))
            size = len(picture)
            top, left = self.height - size, (self.width - size) // 2
            rgb[top:, left : left + size][mask] = picture[mask]
            segmentation[top:, left : left + size][mask] = index
        return View(rgb, segmentation, depth.reshape(shape))


_HELD_PROPORTIONS: dict[str, Vector] = {
    "Bowl": (1, 0.55, 1),
    "Plate": (1, 0.14, 1),
    "Book": (0.8, 0.22, 1),
    "Laptop": (0.8, 0.3, 1),
    "Pillow": (0.8, 0.5, 1),
    "Bread": (0.6, 0.5, 1),
    "SprayBottle": (0.45, 1, 0.45),
    "Vase": (0.7, 1, 0.7),
    "Candle": (0.5, 1, 0.5),
}


@cache
def held_picture(object_type: str, look: Appearance, size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture ``(size, size, 3) uint8`` of an object seen slightly from above, and where it is opaque."""
    mesh = build_mesh(shape_of(object_type, _HELD_PROPORTIONS.get(object_type, (1, 1, 1)), look), (0, 0, 0), 2, -1)
    scene = rtcore_scene.EmbreeScene()
    TriangleMesh(scene, np.ascontiguousarray(mesh.triangles, np.float32))
    steps = ((np.arange(size) + 0.5) / size * 2 - 1) * 0.72
    y, x = np.meshgrid(-steps, steps, indexing="ij")
    tilt = np.radians(30)
    ahead, up = np.array([0, -np.sin(tilt), np.cos(tilt)]), np.array([0, np.cos(tilt), np.sin(tilt)])
    origins = (x[..., None] * np.array([1, 0, 0]) + y[..., None] * up - 3 * ahead).reshape(-1, 3).astype(np.float32)
    rays = np.tile(ahead.astype(np.float32), (len(origins), 1))
    triangle = scene.run(origins, rays, query="INTERSECT", output=1)["primID"]
    mask = triangle >= 0
    triangle = np.where(mask, triangle, 0)
    normal = mesh.normals[triangle]
    shade = np.where(mesh.glows[triangle], 1.0, 0.72 + 0.22 * normal[:, 1] + 0.08 * normal[:, 0])
    colour = np.clip(mesh.colours[triangle] * shade[:, None], 0, 1)
    return (colour * 255).astype(np.uint8).reshape(size, size, 3), mask.reshape(size, size)
