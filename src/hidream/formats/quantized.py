"""Quantised matrices: stored in fewer bits than they are computed in.

A `Quantized` keeps the bytes of the file; `dense` dequantises the matrix for one product. The schemes of GGUF files are
in `gguf_blocks.py` and `gguf_grids.py`, the others here. Knows no modules and no files.

Every scheme multiplies in float32 and rounds once, to the requested type.

Shapes: O rows (outputs of a linear layer), I columns (inputs), n blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import gguf
import torch
import torch.nn.functional as F
from torch import Tensor

from hidream.errors import ConfigurationError
from hidream.formats.blocks import by_chunks
from hidream.formats.gguf_blocks import look_up
from hidream.formats.gguf_grids import GGUF_TYPES, tables


class Scheme(StrEnum):
    """How a matrix is stored, where it is neither simply a tensor of floats nor a GGUF type.

    FLOAT: "data" of any float type [O, I], where a parameter of that type would be misunderstood.
    FP8: "data" float8 [O, I]; with or without "scale" float32, [] or [O, 1].
    INT8: "data" int8 [O, I], "scale" float32 [O, 1].
    NF4: "data" uint8 [n, 32], two values in a byte, the high nibble first, in blocks along the flattened matrix;
        "scale" float32 [n, 1]; "pairs" float32 [256, 2], the two values of each byte (`nf4_pairs`).
    """

    FLOAT = "float"
    FP8 = "fp8"
    INT8 = "int8"
    NF4 = "nf4"


NF4_CODE = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Quantiles of a normal distribution (Dettmers et al., QLoRA, arXiv 2305.14314, appendix E)."""
NF4_BLOCK = 64

GGUF_WRITABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
"""The types that the package gguf 0.19.0 can quantise to."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A matrix [O, I] as its file or `quantize` stores it."""

    scheme: str  # a Scheme, or a GGUF type's name such as "Q4_K"
    parts: Mapping[str, Tensor]  # what the scheme stores: "data", "scale" where there is one, tables
    shape: torch.Size

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.parts["data"].device

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Quantized:
        """The same on another device."""
        moved = {name: part.to(device, non_blocking=non_blocking) for name, part in self.parts.items()}
        return Quantized(self.scheme, moved, self.shape)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix [O, I] in `dtype`."""
        return DENSE[self.scheme](self.parts, self.shape, dtype)


StoredTensor = Tensor | Quantized
"""A tensor as a file has it."""


def quantize(matrix: Tensor, scheme: str) -> Quantized:
    """Store a matrix [O, I] of any float type in fewer bits, on its device (GGUF's types: on the CPU).

    `scheme` is a Scheme or one of GGUF_WRITABLE. Raises ConfigurationError on any other, and on rows that do not
    consist of whole blocks.
    """
    if scheme not in QUANTIZE and scheme not in GGUF_WRITABLE:
        accepted = ", ".join((*QUANTIZE, *GGUF_WRITABLE))
        raise ConfigurationError(f"weights cannot be quantised to {scheme!r}; accepted: {accepted}")
    if scheme in QUANTIZE:
        return Quantized(scheme, QUANTIZE[scheme](matrix.float()), matrix.shape)
    try:
        data = gguf.quantize(matrix.float().cpu().numpy(), gguf.GGMLQuantizationType[scheme])
    except gguf.QuantError as error:
        block = GGUF_TYPES[scheme].values
        raise ConfigurationError(
            f"a matrix of shape {list(matrix.shape)} cannot be quantised to {scheme}, in rows of {block} values"
        ) from error
    return from_blocks(scheme, torch.from_numpy(data), matrix.shape)


def from_blocks(scheme: str, data: Tensor, shape: torch.Size) -> Quantized:
    """Return a matrix whose rows are blocks of a GGUF type: uint8 [..., bytes of one row]."""
    return Quantized(scheme, {"data": data, **tables(scheme)}, shape)


def nf4_pairs(code: Tensor) -> Tensor:
    """Sixteen values to those of each byte's high and low nibble, [256, 2]."""
    byte = torch.arange(256, device=code.device)
    return torch.stack((code[byte >> 4], code[byte & 15]), dim=-1).float()


def _to_fp8(matrix: Tensor) -> dict[str, Tensor]:
    """One scale a row, a power of two: then the product with a 16-bit float is exact."""
    limit = torch.finfo(torch.float8_e4m3fn).max
    _, exponent = torch.frexp(matrix.abs().amax(dim=-1, keepdim=True) / limit)
    scale = torch.ldexp(torch.ones_like(matrix[..., :1]), exponent)  # at least max / limit, less than twice that
    return {"data": (matrix / scale).to(torch.float8_e4m3fn), "scale": scale}


def _to_int8(matrix: Tensor) -> dict[str, Tensor]:
    scale = matrix.abs().amax(dim=-1, keepdim=True) / 127
    scale = torch.where(scale == 0, 1, scale)
    return {"data": (matrix / scale).round().clamp(-127, 127).to(torch.int8), "scale": scale}


def _to_nf4(matrix: Tensor) -> dict[str, Tensor]:
    """Each value to the nearest of the code, relative to its block's largest."""
    code = torch.tensor(NF4_CODE, device=matrix.device)
    blocks = F.pad(matrix.flatten(), (0, -matrix.numel() % NF4_BLOCK)).view(-1, NF4_BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    middles = (code[1:] + code[:-1]) / 2
    # 1e-38: a block of zeros stays one
    nearest = torch.bucketize(blocks * (1 / scale.clamp(min=1e-38)), middles, out_int32=True).to(torch.uint8)
    return {"data": (nearest[:, ::2] << 4) | nearest[:, 1::2], "scale": scale, "pairs": nf4_pairs(code)}


QUANTIZE: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {
    Scheme.FP8: _to_fp8,
    Scheme.INT8: _to_int8,
    Scheme.NF4: _to_nf4,
}

Dense = Callable[[Mapping[str, Tensor], torch.Size, torch.dtype], Tensor]


def _fp8(parts: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    fast = parts["data"].device.type == "cpu" and parts["data"].dtype is torch.float8_e4m3fn
    if fast and not torch.compiler.is_compiling():
        return by_chunks(_e4m3, _rows(parts), shape, shape[-1], dtype)
    return _scaled(parts, shape, dtype)


def _int8(parts: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if parts["data"].device.type == "cpu" and not torch.compiler.is_compiling():
        return by_chunks(lambda data, scale: data.float().mul_(scale), _rows(parts), shape, shape[-1], dtype)
    return _scaled(parts, shape, dtype)


def _nf4(parts: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    pairs = parts["pairs"]
    block = 2 * parts["data"].shape[1]
    return by_chunks(
        lambda data, scale: look_up(data, pairs).flatten(1).mul_(scale),
        (parts["data"], parts["scale"]),
        shape,
        block,
        dtype,
    )


def _scaled(parts: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Values times their scale: one scale for the matrix [], or one for each row [O, 1]; none means 1.

    Without a float32 copy on a card or when compiled: eight bits are exact in any float type, and a product in place
    with a float32 scale rounds once.
    """
    values = parts["data"].to(dtype)
    return values.mul_(parts["scale"]) if "scale" in parts else values


def _rows(parts: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Data [O, I], and the scale [O, 1] where there is one."""
    data = parts["data"].flatten(end_dim=-2)
    if "scale" not in parts:
        return (data,)
    scale = parts["scale"].float()
    return data, scale.view(-1, 1).expand(data.shape[0], 1)


def _e4m3(data: Tensor, scale: Tensor | None = None) -> Tensor:
    """Fast version of `_scaled` for float8_e4m3fn: twice as fast on a CPU, which has no instruction for it.

    Its bits, moved, are those of a float16 256 times smaller. Not a number becomes 480.
    """
    shifted = (data.view(torch.int8).to(torch.int16) << 7) & ~0x4000  # the second bit is a copy of the sign
    return shifted.view(torch.float16).float().mul_(256 if scale is None else scale * 256)


DENSE: dict[str, Dense] = {
    Scheme.FLOAT: lambda parts, shape, dtype: parts["data"].to(dtype),
    Scheme.FP8: _fp8,
    Scheme.INT8: _int8,
    Scheme.NF4: _nf4,
    **{name: block_type.dense for name, block_type in GGUF_TYPES.items()},
}
