"""Where a scene's objects stand in an image of a given shape: names to places in tokens, one per drawn object.

Pure Python. The image is cut into cells, one per object, along the way that the layout or the shape demands; an
object stands in the middle of its cell, so that what the caption says of places is true. Knows nothing of sprites but
that they are square, and no pixels.

Objects stand upright, whole tokens large, and on the tokens' grid. A transformer has to know its objects by heart,
token by token, so a drawing should have few different contents of a token: 56, 2² + 4² + 6² by its size, and one that
stands beside others is as large as one alone. With places, sizes and angles as they came there was no end to them, and
after 140,000 images nano still drew blobs (docs/LOG.md).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from hidream.model.latents.shape import Grid
from scenes import Extent, Layout, Scene

SIZES = {Extent.SMALL: 2, Extent.NORMAL: 4, Extent.BIG: 6}
"""Side of an object's place in tokens, which its drawing fills but for the margin of a sprite's frame.

Where there is no room for it, the next smaller one is taken.
"""


class Placement(NamedTuple):
    """One object in the image: the upper left corner and the side of its place, all in tokens."""

    object: str
    style: str
    column: int
    row: int
    size: int


PARTS = 1 + sum(size**2 for size in SIZES.values())
"""How many numbers `part_of` gives."""


def part_of(size: int, row: int, column: int) -> int:
    """Number the parts of objects of all sizes, token by token, from 1; 0 is for what is no object."""
    return 1 + sum(smaller**2 for smaller in SIZES.values() if smaller < size) + row * size + column


class _Cell(NamedTuple):
    left: float
    top: float
    width: float
    height: float


def place(scene: Scene, grid: Grid) -> list[Placement]:
    """Put the scene's objects into an image of `grid`'s shape; the first is the left or upper one."""
    placements = []
    for name, cell in zip(scene.objects * scene.count, _cells(scene, grid), strict=True):
        size = max(size for size in SIZES.values() if size <= min(SIZES[scene.extent], cell.width, cell.height))
        column, row = (
            math.floor(x + 0.5) for x in (cell.left + (cell.width - size) / 2, cell.top + (cell.height - size) / 2)
        )
        placements.append(Placement(name, scene.style, column, row, size))
    return placements


def _cells(scene: Scene, grid: Grid) -> list[_Cell]:
    """One for each object, in order: a row, a column, or for three on something like a square one above two."""
    (height, width), count = grid, scene.count * len(scene.objects)
    aspect = width / height
    if count == 3 and 1 / 1.3 < aspect < 1.3:
        w, h = width / 2, height / 2
        return [_Cell(w / 2, 0, w, h), _Cell(0, h, w, h), _Cell(w, h, w, h)]
    if scene.layout is Layout.LEFT_OF or (scene.layout is not Layout.ABOVE and aspect >= 1):
        return [_Cell(i * width / count, 0, width / count, height) for i in range(count)]
    return [_Cell(0, i * height / count, width, height / count) for i in range(count)]
