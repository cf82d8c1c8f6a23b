"""Sizes: which shape the model draws for a size that was asked, and how the drawing becomes exactly that size.

Shapes are counted in tokens, rows × columns; a token covers `token_px` pixels along each side.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hidream.types import Render, Size

AREA_WEIGHT = 0.5
"""How much a deviation from the best area counts beside one from the asked aspect (both as logarithms)."""


class Grid(NamedTuple):
    """A shape in tokens."""

    rows: int
    columns: int


def render_grid(size: Size, render: Render, token_px: int, best_tokens: int, max_tokens: int) -> Grid:
    """Choose the shape to draw for `size`.

    `best_tokens` is the area the model was trained for, `max_tokens` the largest trained area; see `types.Render`, of
    which BEST and REFINE begin as SCALED does.
    """
    if render is Render.NATIVE:
        return Grid(rows=-(-size.height // token_px), columns=-(-size.width // token_px))
    if render is Render.REFERENCE:
        scale = math.sqrt(best_tokens * token_px**2 / (size.width * size.height))
        return Grid(rows=int(size.height * scale // token_px), columns=int(size.width * scale // token_px))
    return _nearest(size, best_tokens, max_tokens)


def _nearest(size: Size, best_tokens: int, max_tokens: int) -> Grid:
    """Weigh every shape of at most `max_tokens`: the asked aspect first, then the best area."""
    aspect = size.width / size.height

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


def fit(picture: Tensor, size: Size) -> Tensor:
    """Scale picture [3, H, W] to cover `size`, cut out the centre: [3, size.height, size.width]. Never stretches."""
    height, width = picture.shape[-2:]
    scale = max(size.width / width, size.height / height)
    if scale != 1:
        height, width = (max(round(height * scale), size.height), max(round(width * scale), size.width))
        picture = F.interpolate(picture[None], (height, width), mode="bicubic", antialias=True)[0]
    top, left = (height - size.height) // 2, (width - size.width) // 2
    return picture[:, top : top + size.height, left : left + size.width]


def to_pixels(picture: Tensor) -> Tensor:
    """Picture [3, H, W] in −1 to 1 to uint8 pixels [H, W, 3]."""
    values = picture.float().div(2).add_(0.5).clamp_(0, 1).mul_(255).round_()  # one temporary, not five
    return values.to(torch.uint8).permute(1, 2, 0)
