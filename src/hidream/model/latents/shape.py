"""Sizes: which shape the model generates for a requested size, and how the result becomes exactly that size.

Shapes are counted in tokens, rows × columns; a token covers `token_px` pixels along each side.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hidream.images.prepared import BICUBIC_REACH, SPARE
from hidream.types import Render, Size

AREA_WEIGHT = 0.5
"""Weight of a deviation from the best area, relative to one from the requested aspect (both as logarithms)."""


class Grid(NamedTuple):
    """A shape in tokens."""

    rows: int
    columns: int


def render_grid(size: Size, render: Render, token_px: int, best_tokens: int, max_tokens: int) -> Grid:
    """Choose the shape to generate for `size`.

    `best_tokens` is the area the model was trained for, `max_tokens` the largest trained area; see `types.Render`, of
    which BEST and REFINE begin as SCALED does.
    """
    if render is Render.NATIVE:
        return Grid(rows=-(-size.height // token_px), columns=-(-size.width // token_px))
    if render is Render.REFERENCE:
        scale = math.sqrt(best_tokens * token_px**2 / (size.width * size.height))
        rows, columns = int(size.height * scale // token_px), int(size.width * scale // token_px)
        return Grid(max(rows, 1), max(columns, 1))
    return _nearest(size, best_tokens, max_tokens)


def _nearest(size: Size, best_tokens: int, max_tokens: int) -> Grid:
    """Compare all shapes of at most `max_tokens`: the requested aspect first, then the best area."""
    aspect = min(max(size.width / size.height, 1 / max_tokens), max_tokens)

    def deviation(grid: Grid) -> float:
        off_aspect = abs(math.log(grid.columns / grid.rows / aspect))
        return off_aspect + AREA_WEIGHT * abs(math.log(grid.rows * grid.columns / best_tokens))

    longest = 2 * math.ceil(math.sqrt(best_tokens * max(aspect, 1 / aspect)))
    candidates = (
        Grid(rows, columns)
        for rows in range(1, longest + 1)
        for columns in range(max(1, math.floor(rows * aspect)), math.ceil(rows * aspect) + 1)
        if rows * columns <= max_tokens
    )
    return min(candidates, key=deviation)


def fit(image: Tensor, size: Size) -> Tensor:
    """Scale image [C, H, W] to cover `size`, cut out the centre: [C, size.height, size.width]. Never stretches."""
    scale, image = _cover_scale(image, size), trim(image, size)
    if scale != 1:
        height, width = image.shape[-2:]
        height, width = (max(round(height * scale), size.height), max(round(width * scale), size.width))
        image = F.interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]
    top, left = (image.shape[-2] - size.height) // 2, (image.shape[-1] - size.width) // 2
    return image[:, top : top + size.height, left : left + size.width]


def trim(image: Tensor, size: Size) -> Tensor:
    """Crop both ends of an image [C, H, W], as far as they are well outside of what `fit` keeps.

    Before anything is scaled: 2000 × 1 pixels would cover 1024² with two million columns. SPARE times the size stays.
    """
    scale = _cover_scale(image, size)
    height, width = image.shape[-2:]
    top = max(0, height // 2 - math.ceil(size.height / scale * SPARE / 2) - BICUBIC_REACH)
    left = max(0, width // 2 - math.ceil(size.width / scale * SPARE / 2) - BICUBIC_REACH)
    return image[:, top : height - top, left : width - left]


def _cover_scale(image: Tensor, size: Size) -> float:
    return max(size.width / image.shape[-1], size.height / image.shape[-2])


def to_pixels(image: Tensor) -> Tensor:
    """Image [3, H, W] in −1 to 1 to uint8 pixels [H, W, 3]."""
    values = image.float().div(2).add_(0.5).clamp_(0, 1).mul_(255).round_()  # one temporary, not five
    return values.to(torch.uint8).permute(1, 2, 0)
