"""Where a scene's objects stand in a picture of a given shape: names to places in tokens, one per drawn object.

Pure Python. The picture is cut into cells, one per object, along the way that the layout or the shape demands; an
object stands in the middle of its cell, so that what the caption says of places is true. Knows nothing of sprites but
that they are square, and no pixels.

Objects stand upright, whole tokens large, and on a grid. A transformer has to know its objects by heart, token by
token: so a drawing is 72 different contents of a token (2² + 4² + 6² by its size, and 4² for the 3 tokens of one among
several, which stands between the lines), all 512 drawings 2.4 million numbers. With places, sizes and angles as they
came there was no end to them, and after 140,000 pictures nano still drew blobs (docs/LOG.md).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from hidream.model.shape import Grid
from scenes import Extent, Layout, Scene

SIZES = {Extent.SMALL: (2, 2), Extent.NORMAL: (3, 4), Extent.BIG: (4, 6)}
"""Long side of a single object in tokens, where the picture's shorter side has less than seven, and elsewhere."""
ROOMY = 7
AMONG = (2, 3)
"""The same of one of several: where its cell has less than four tokens, and elsewhere."""


class Placement(NamedTuple):
    """One object in the picture: the upper left corner and the long side of its visible part, all in tokens."""

    object: str
    style: str
    column: float
    row: float
    size: int


class _Cell(NamedTuple):
    left: float
    top: float
    width: float
    height: float


def place(scene: Scene, grid: Grid) -> list[Placement]:
    """Put the scene's objects into a picture of `grid`'s shape; the first is the left or upper one."""
    cells, placements = _cells(scene, grid), []
    for name, cell in zip(scene.objects * scene.count, cells, strict=True):
        if len(cells) == 1:
            size, phase = SIZES[scene.extent][min(grid) >= ROOMY], 0.0
        else:
            size, phase = AMONG[min(cell.width, cell.height) >= 4], 0.5
        column, row = cell.left + (cell.width - size) / 2, cell.top + (cell.height - size) / 2
        placements.append(Placement(name, scene.style, _on_grid(column, phase), _on_grid(row, phase), size))
    return placements


def _on_grid(place: float, phase: float) -> float:
    return math.floor(place - phase + 0.5) + phase


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
