"""Encodes or decodes a large image in overlapping tiles that are blended, for where memory is short.

Shapes: B batch, C channels, H and W of what goes in. A tile begins at every three quarters of a tile's side, so that a
quarter of it overlaps the next one. There the results fade from the earlier tile to the later one, downward first.
Source: diffusers 0.42.1, autoencoder_kl.py, `tiled_decode`; the order of the blends is the same, and so are the bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_tiles(compute: Callable[[Tensor], Tensor], x: Tensor, side: int, side_out: int) -> Tensor:
    """Compute x [B, C, H, W] tile by tile, `side` cells wide, of which `compute` makes `side_out`; blend the results.

    What fits into one tile is computed whole. Each tile is computed as if it were all.
    """
    if max(x.shape[-2:]) <= side:
        return compute(x)
    stride, kept = side * 3 // 4, side_out - side_out // 4
    above: list[Tensor] = []
    rows = []
    for top in range(0, x.shape[-2], stride):
        row: list[Tensor] = []
        for left in range(0, x.shape[-1], stride):
            tile = compute(x[..., top : top + side, left : left + side])
            if above:
                _blend(above[len(row)], tile, -2, side_out - kept)
            if row:
                _blend(row[-1], tile, -1, side_out - kept)
            row.append(tile)
        rows.append(torch.cat([tile[..., :kept, :kept] for tile in row], dim=-1))
        above = row
    return torch.cat(rows, dim=-2)


def _blend(before: Tensor, tile: Tensor, dim: int, overlap: int) -> None:
    """Fade the first `overlap` cells of `tile` along `dim` from the last ones of the tile before it, in place."""
    width = min(before.shape[dim], tile.shape[dim], overlap)
    steps = torch.arange(width, device=tile.device, dtype=torch.float32).unflatten(0, (-1, 1) if dim == -2 else (-1,))
    start, end = tile.narrow(dim, 0, width), before.narrow(dim, before.shape[dim] - width, width)
    faded = (end * ((width - steps) / width)).to(tile.dtype) + (start * (steps / width)).to(tile.dtype)
    start.copy_(faded)
