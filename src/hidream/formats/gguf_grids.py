"""GGUF's IQ types, which look up several values at once in a grid, and the tables of all types that need one.

The grids are large and come from the `gguf` package when a file is opened; they travel with the matrix's parts, so
that decoding copies nothing to the device.

Shapes: n blocks, T bytes of one block. Source: as in `gguf_blocks.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from gguf import quants
from torch import Tensor

from hidream.formats.gguf_blocks import BLOCK_TYPES, BlockType, Tables, half, interleave, look_up, nibbles, scaled

DELTA = 0.125
"""What IQ1_S and IQ1_M add to or take from the grid (IQ1S_DELTA, ggml-common.h)."""


def words(x: Tensor) -> Tensor:
    """Bytes [n, 4k] as 32-bit words [n, k]; their place in the block is not a multiple of 4, hence the copy."""
    return x.contiguous().view(torch.int32)


def thirds(x: Tensor) -> Tensor:
    """Fields of three bits: 16-bit words [n, k] to int32 [n, 4k], each word's fields side by side."""
    return torch.stack([(x.int() >> shift) & 7 for shift in (0, 3, 6, 9)], dim=-1).flatten(1)


def signs_and_scale(x: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Words [n, k] to the signs of 32 values, int8 [n, k, 32], and a scale [n, k].

    Each has four fields of seven bits, which stand for eight signs whose product is positive, below four of scale.
    """
    fields = torch.stack([(x >> shift) & 127 for shift in (0, 7, 14, 21)], dim=-1)
    return look_up(fields, signs).flatten(2), (x >> 28) & 15


def _iq2_xxs(b: Tensor, tables: Tables) -> Tensor:
    grid = look_up(b[:, 2:].unflatten(1, (8, 8))[..., :4], tables["grid"]).flatten(2)
    signs, scale = signs_and_scale(words(b[:, 2:])[:, 1::2], tables["signs"])
    return scaled(grid * signs, half(b, 0) * (scale + 0.5) * 0.25)


def _iq2_xs(b: Tensor, tables: Tables) -> Tensor:
    q = b[:, 2:66].view(torch.int16)
    grid = look_up(q & 511, tables["grid"]) * look_up((q >> 9) & 127, tables["signs"])
    return scaled(grid, half(b, 0) * (interleave(b[:, 66:], 4) + 0.5) * 0.25)


def _iq2_s(b: Tensor, tables: Tables) -> Tensor:
    q = b[:, 2:34].int() | (interleave(b[:, 66:74], 2).int() << 8)
    grid = look_up(q, tables["grid"]) * look_up(b[:, 34:66], tables["signs"])
    return scaled(grid, half(b, 0) * (interleave(b[:, 74:], 4) + 0.5) * 0.25)


def _iq3_xxs(b: Tensor, tables: Tables) -> Tensor:
    grid = look_up(b[:, 2:66], tables["grid"]).view(-1, 8, 32)
    signs, scale = signs_and_scale(words(b[:, 66:]), tables["signs"])
    return scaled(grid * signs, half(b, 0) * (scale + 0.5) * 0.5)


def _iq3_s(b: Tensor, tables: Tables) -> Tensor:
    q = b[:, 2:66].int() | (interleave(b[:, 66:74], 1).int() << 8)
    grid = look_up(q, tables["grid"]).view(-1, 32, 8) * look_up(b[:, 74:106], tables["signs"])
    return scaled(grid, half(b, 0) * (interleave(b[:, 106:], 4) * 2 + 1))


def _iq1_s(b: Tensor, tables: Tables) -> Tensor:
    high = b[:, 34:].view(torch.int16)
    grid = look_up(b[:, 2:34].int() | (thirds(high) << 8), tables["grid"]).view(-1, 8, 32)
    delta = torch.where(high < 0, -DELTA, DELTA)[..., None]
    return (grid + delta).mul_((half(b, 0) * (((high >> 12) & 7) * 2 + 1))[..., None])


def _iq1_m(b: Tensor, tables: Tables) -> Tensor:
    high = interleave(b[:, 32:48], 4).int()  # [n, 32]
    grid = look_up(b[:, :32].int() | ((high & 7) << 8), tables["grid"])  # [n, 32, 8]
    delta = torch.where((high & 8) == 0, DELTA, -DELTA)[..., None]
    scales = b[:, 48:].view(torch.int16)  # [n, 4]: four bits of the block's float16 above four fields of three
    first, second, third, fourth = ((scales.int() >> 12) & 15).split(1, dim=1)
    bits = (first | (second << 4) | (third << 8) | (fourth << 12)).to(torch.int16)
    scale = bits.view(torch.float16).float() * (thirds(scales) * 2 + 1)  # [n, 16]
    return (grid + delta).view(-1, 16, 16).mul_(scale[..., None])


def _iq4_nl(b: Tensor, tables: Tables) -> Tensor:
    return nibbles(b[:, None, 2:], tables["pairs"]).reshape(-1, 1, 32).float().mul_(half(b, 0)[..., None])


def _iq4_xs(b: Tensor, tables: Tables) -> Tensor:
    high = b[:, 2:4].view(torch.int16)
    scales = interleave(b[:, 4:8], 4) | torch.cat([((high >> 2 * i) & 3) << 4 for i in range(8)], dim=1)
    q = nibbles(b[:, 8:].unflatten(1, (8, 16)), tables["pairs"]).flatten(2)
    return scaled(q, half(b, 0) * (scales - 32))


GRID_TYPES: dict[str, BlockType] = {
    "IQ2_XXS": BlockType(256, 66, _iq2_xxs),
    "IQ2_XS": BlockType(256, 74, _iq2_xs),
    "IQ2_S": BlockType(256, 82, _iq2_s),
    "IQ3_XXS": BlockType(256, 98, _iq3_xxs),
    "IQ3_S": BlockType(256, 110, _iq3_s),
    "IQ1_S": BlockType(256, 50, _iq1_s),
    "IQ1_M": BlockType(256, 56, _iq1_m),
    "IQ4_NL": BlockType(32, 18, _iq4_nl),
    "IQ4_XS": BlockType(256, 136, _iq4_xs),
}

GGUF_TYPES: dict[str, BlockType] = {**BLOCK_TYPES, **GRID_TYPES}
"""Every quantised type that `gguf.dequantize` knows, by its name."""

SIGNS_OF_SEVEN_BITS = ("IQ2_XXS", "IQ2_XS", "IQ3_XXS")
SIGNS_OF_EIGHT_BITS = ("IQ2_S", "IQ3_S")
FOUR_BIT_VALUES = {
    "IQ4_NL": quants.IQ4_NL.kvalues,
    "IQ4_XS": quants.IQ4_NL.kvalues,
    "MXFP4": quants.MXFP4.kvalues,
    "NVFP4": quants.NVFP4.kvalues,
}


def tables(name: str) -> dict[str, Tensor]:
    """What the type `name` looks values up in, int8, on the CPU; nothing for most types.

    "grid" [N, k] values; "signs" [128 or 256, 8]; "pairs" [256, 2] values of a byte's low and high nibble.
    """
    found: dict[str, np.ndarray] = {}
    if name in FOUR_BIT_VALUES:
        values, byte = np.array(FOUR_BIT_VALUES[name], dtype=np.int8), np.arange(256)
        found["pairs"] = np.stack((values[byte & 15], values[byte >> 4]), axis=1)
    elif name in GRID_TYPES:
        block_type = getattr(quants, name)
        block_type.init_grid()
        found["grid"] = block_type.grid.reshape(block_type.grid_shape).astype(np.int8)
    if name in SIGNS_OF_SEVEN_BITS:
        found["signs"] = _signs(np.frombuffer(quants.IQ2_XXS.ksigns, dtype=np.uint8))
    elif name in SIGNS_OF_EIGHT_BITS:
        found["signs"] = _signs(np.arange(256, dtype=np.uint8))
    return {key: torch.from_numpy(table) for key, table in found.items()}


def _signs(x: np.ndarray) -> np.ndarray:
    return (1 - 2 * np.unpackbits(x[:, None], axis=1, bitorder="little").astype(np.int8)).astype(np.int8)
