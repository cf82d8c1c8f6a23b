"""Decodes GGUF's block types to float32: legacy, K, ternary and microscaling types; IQ types are in `gguf_grids.py`.

Each `decode` takes the bytes of n blocks and returns their values, bit for bit as the `gguf` package's `dequantize`.
Values are unpacked in 8-bit integers and become floats once, at the end.

Shapes: n blocks, T bytes of one block, V values of one block, G groups in a block that share a scale.
Source of all layouts: ggml, src/ggml-common.h (structs) and the package gguf 0.19.0, quants.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hidream.formats.blocks import by_chunks

Tables = Mapping[str, Tensor]
"""What a type looks values up in; the same for all its matrices (`gguf_grids.tables`)."""


class BlockType(NamedTuple):
    """One of GGUF's types."""

    values: int  # V
    nbytes: int  # T
    decode: Callable[[Tensor, Tables], Tensor]  # blocks [n, T] to float32 of n·V values, in any shape

    def dense(self, parts: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """`parts["data"]` uint8 [..., bytes of one row] to a tensor of `shape` in `dtype`."""
        blocks = parts["data"].view(-1, self.nbytes)
        return by_chunks(lambda rows: self.decode(rows, parts), (blocks,), shape, self.values, dtype)


def half(b: Tensor, at: int) -> Tensor:
    """Float16 numbers at byte `at` of each block, as float32 [n, 1]."""
    return b[:, at : at + 2].view(torch.float16).float()


def unpack(x: Tensor, bits: int) -> Tensor:
    """Fields of `bits` bits: bytes [..., k] to [..., 8 / bits, k], all the lowest fields first."""
    mask = (1 << bits) - 1
    return torch.stack([(x >> shift) & mask for shift in range(0, 8, bits)], dim=-2)


def interleave(x: Tensor, bits: int) -> Tensor:
    """Fields of `bits` bits: bytes [n, k] to [n, k · 8 / bits], each byte's fields side by side, the lowest first."""
    mask = (1 << bits) - 1
    return torch.stack([(x >> shift) & mask for shift in range(0, 8, bits)], dim=-1).flatten(1)


def scaled(q: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """q·scale − offset for integers q of n·V values; scale and offset [n, G]."""
    x = q.view(*scale.shape, -1).float().mul_(scale[..., None])
    return x if offset is None else x.sub_(offset[..., None])


def _q4_0(b: Tensor, _: Tables) -> Tensor:
    return scaled(unpack(b[:, 2:], 4).view(torch.int8) - 8, half(b, 0))


def _q4_1(b: Tensor, _: Tables) -> Tensor:
    return scaled(unpack(b[:, 4:], 4), half(b, 0)).add_(half(b, 2)[..., None])


def _five(low: Tensor, high: Tensor) -> Tensor:
    """Four low bits [n, 16 bytes] and one high bit [n, 4 bytes] of 32 values, uint8 [n, 32]."""
    return unpack(low, 4).flatten(1) | (interleave(high, 1) << 4)


def _q5_0(b: Tensor, _: Tables) -> Tensor:
    return scaled(_five(b[:, 6:], b[:, 2:6]).view(torch.int8) - 16, half(b, 0))


def _q5_1(b: Tensor, _: Tables) -> Tensor:
    return scaled(_five(b[:, 8:], b[:, 4:8]), half(b, 0)).add_(half(b, 2)[..., None])


def _q8_0(b: Tensor, _: Tables) -> Tensor:
    return b[:, 2:].view(torch.int8).float().mul_(half(b, 0))


def _q2_k(b: Tensor, _: Tables) -> Tensor:
    q = unpack(b[:, 16:80].unflatten(1, (2, 32)), 2)
    scales = b[:, :16]
    return scaled(q, half(b, 80) * (scales & 15), half(b, 82) * (scales >> 4))


def _q3_k(b: Tensor, _: Tables) -> Tensor:
    low = unpack(b[:, 32:96].unflatten(1, (2, 32)), 2).flatten(1)
    high = unpack(b[:, :32], 1).flatten(1)
    # six bits of each scale: four in the first eight bytes, two in the last four
    scales = unpack(b[:, 96:104], 4).flatten(1) | (unpack(b[:, 104:108], 2).flatten(1) << 4)
    return scaled((low | (high << 2)).view(torch.int8) - 4, half(b, 108) * (scales.view(torch.int8) - 32))


def _k_scales(b: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and offsets [n, 8] of Q4_K and Q5_K: six bits each, in bytes 4 to 16, with two float16 before them.

    The first four of either are the low six bits of four bytes; the high two bits of those bytes, over a nibble of the
    last four bytes, are the other four.
    """
    first, second, last = b[:, 4:16].split(4, dim=1)
    scale = torch.cat((first & 63, (last & 15) | ((first >> 2) & 48)), dim=1)
    offset = torch.cat((second & 63, (last >> 4) | ((second >> 2) & 48)), dim=1)
    return half(b, 0) * scale, half(b, 2) * offset


def _q4_k(b: Tensor, _: Tables) -> Tensor:
    return scaled(unpack(b[:, 16:].unflatten(1, (4, 32)), 4), *_k_scales(b))


def _q5_k(b: Tensor, _: Tables) -> Tensor:
    low = unpack(b[:, 48:].unflatten(1, (4, 32)), 4).flatten(1)
    high = unpack(b[:, 16:48], 1).flatten(1)
    return scaled(low | (high << 4), *_k_scales(b))


def _q6_k(b: Tensor, _: Tables) -> Tensor:
    low = unpack(b[:, :128].unflatten(1, (2, 64)), 4).flatten(1)
    high = unpack(b[:, 128:192].unflatten(1, (2, 32)), 2).flatten(1)
    return scaled((low | (high << 4)).view(torch.int8) - 32, half(b, 208) * b[:, 192:208].view(torch.int8))


def _tq1_0(b: Tensor, _: Tables) -> Tensor:
    """Five ternary digits in a byte, as a fraction of 256: multiply by 3 and take what passes the byte."""

    def digits(x: Tensor, count: int) -> Tensor:
        return torch.stack([(x * 3**i) & 255 for i in range(count)], dim=1).flatten(1)

    x = b[:, :52].to(torch.int16)
    fractions = torch.cat((digits(x[:, :32], 5), digits(x[:, 32:48], 5), digits(x[:, 48:], 4)), dim=1)
    return scaled(((fractions * 3) >> 8) - 1, half(b, 52))


def _tq2_0(b: Tensor, _: Tables) -> Tensor:
    return scaled(unpack(b[:, :64].unflatten(1, (2, 32)), 2).view(torch.int8) - 1, half(b, 64))


def look_up(x: Tensor, table: Tensor) -> Tensor:
    """Rows of `table` [N, k] at the numbers x [...]: [..., k]."""
    return table.index_select(0, x.flatten().int()).view(*x.shape, -1)


def nibbles(x: Tensor, pairs: Tensor) -> Tensor:
    """Values that two nibbles encode: bytes [n, G, k] to [n, G, 2, k], the low nibbles' first.

    `pairs` [256, 2] has both nibbles' values for each byte.
    """
    return look_up(x, pairs).transpose(-1, -2)


def _mxfp4(b: Tensor, tables: Tables) -> Tensor:
    # the scale is a power of two: its exponent, as of half a float; the first two of them are subnormal
    e = b[:, :1].int()
    scale = torch.where(e < 2, 0x00200000 << e, (e - 1) << 23).view(torch.float32)
    return nibbles(b[:, None, 1:], tables["pairs"]).reshape(-1, 1, 32).float().mul_(scale[..., None])


def _nvfp4(b: Tensor, tables: Tables) -> Tensor:
    e = b[:, :4]
    scale = (e & 127).view(torch.float8_e4m3fn).float()
    # 127 is no number in E4M3, and 0 here; the sign is ignored
    scale = scale.masked_fill(e == 255, 480).masked_fill(e == 127, 0) / 2
    return nibbles(b[:, 4:].unflatten(1, (4, 8)), tables["pairs"]).flatten(2).float().mul_(scale[..., None])


BLOCK_TYPES: dict[str, BlockType] = {
    "Q4_0": BlockType(32, 18, _q4_0),
    "Q4_1": BlockType(32, 20, _q4_1),
    "Q5_0": BlockType(32, 22, _q5_0),
    "Q5_1": BlockType(32, 24, _q5_1),
    "Q8_0": BlockType(32, 34, _q8_0),
    "Q2_K": BlockType(256, 84, _q2_k),
    "Q3_K": BlockType(256, 110, _q3_k),
    "Q4_K": BlockType(256, 144, _q4_k),
    "Q5_K": BlockType(256, 176, _q5_k),
    "Q6_K": BlockType(256, 210, _q6_k),
    "TQ1_0": BlockType(256, 54, _tq1_0),
    "TQ2_0": BlockType(256, 66, _tq2_0),
    "MXFP4": BlockType(32, 17, _mxfp4),
    "NVFP4": BlockType(64, 36, _nvfp4),
}
