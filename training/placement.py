"""Where a scene's objects stand in a picture of a given shape: names to pixels, one placement per drawn object.

Pure Python. The picture is cut into cells, one per object, along the way that the layout or the shape demands; an
object stays inside its cell, so that what the caption says of places is true. Knows nothing of sprites but that they
are square.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from concepts import Concepts
from scenes import Extent, Layout, Scene

SIZES = {Extent.SMALL: (0.24, 0.32), Extent.NORMAL: (0.5, 0.64), Extent.BIG: (0.8, 0.93)}
"""Long side of a single object, in short sides of the picture, from and to."""

CELL_SIZE, CELL_LIMIT = (0.74, 0.9), 0.68
"""Long side of one of several, in short sides of its cell, which counts as at most `CELL_LIMIT` of the picture's."""


@dataclass(frozen=True, slots=True)
class Jitter:
    """How freely objects are put: share of the free room used, rotation to either side, share that is mirrored."""

    room: float = 0.4
    rotation_deg: float = 7.0
    mirrored: float = 0.5


class Placement(NamedTuple):
    """One object in the picture: centre and long side of its visible part; turned clockwise; maybe mirrored."""

    object: str
    style: str
    x_px: float
    y_px: float
    size_px: float
    angle_deg: float
    mirrored: bool


class _Cell(NamedTuple):
    left: float
    top: float
    width: float
    height: float


def place(
    scene: Scene, concepts: Concepts, height: int, width: int, rng: random.Random, jitter: Jitter
) -> list[Placement]:
    """Put the scene's objects into a picture of `height` × `width` pixels; the first is the left or upper one."""
    short, cells = min(height, width), _cells(scene, height, width)
    alone = len(cells) == 1
    scale = rng.uniform(*(SIZES[scene.extent] if alone else CELL_SIZE))
    placements = []
    for name, cell in zip(scene.objects * scene.count, cells, strict=True):
        side = short if alone else min(cell.width, cell.height, CELL_LIMIT * short)
        size = side * scale * (1 if alone else rng.uniform(0.95, 1.0))
        x, y = _inside(cell, size, short, rng, jitter)
        angle = rng.uniform(-jitter.rotation_deg, jitter.rotation_deg)
        mirrored = rng.random() < jitter.mirrored and concepts.objects[name].mirror
        placements.append(Placement(name, scene.style, x, y, size, angle, mirrored))
    return placements


def _inside(cell: _Cell, size: float, short: float, rng: random.Random, jitter: Jitter) -> tuple[float, float]:
    """A centre in `cell`; along a long side no farther from the middle than on a square."""
    room_x, room_y = (
        jitter.room * min(side - size, max(short - size, 0.2 * short)) / 2 for side in (cell.width, cell.height)
    )
    middle_x, middle_y = cell.left + cell.width / 2, cell.top + cell.height / 2
    return middle_x + rng.uniform(-room_x, room_x), middle_y + rng.uniform(-room_y, room_y)


def _cells(scene: Scene, height: int, width: int) -> list[_Cell]:
    """One for each object, in order: a row, a column, or for three on something like a square one above two."""
    count, aspect = scene.count * len(scene.objects), width / height
    if count == 3 and 1 / 1.3 < aspect < 1.3:
        w, h = width / 2, height / 2
        return [_Cell(w / 2, 0, w, h), _Cell(0, h, w, h), _Cell(w, h, w, h)]
    if scene.layout is Layout.LEFT_OF or (scene.layout is not Layout.ABOVE and aspect >= 1):
        return [_Cell(i * width / count, 0, width / count, height) for i in range(count)]
    return [_Cell(0, i * height / count, width, height / count) for i in range(count)]
