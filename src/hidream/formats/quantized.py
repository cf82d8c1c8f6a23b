"""Matrices that are stored in fewer bits than they are computed in.

A `Quantized` keeps the bytes of the file as they are; `dense` makes the matrix for one product. The schemes that come
from GGUF files are in `gguf_blocks.py`, the others here. Knows no modules and no files.

Shapes: O rows (outputs of a linear layer), I columns (inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Scheme(StrEnum):
    """How a matrix is stored, where it is not simply a tensor of floats."""

    FP8 = "fp8"
    INT8 = "int8"
    NF4 = "nf4"


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A matrix [O, I] as its file or `quantize` stores it."""

    scheme: str  # a Scheme, or a GGUF type's name such as "Q4_K"
    parts: Mapping[str, Tensor]  # what the scheme stores: "data", and "scale" where there is one
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


Dense = Callable[[Mapping[str, Tensor], torch.Size, torch.dtype], Tensor]


def _scaled(parts: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Values times their scale: one scale for the matrix [], or one for each row [O, 1]; none means 1."""
    values = parts["data"].to(dtype)
    return values * parts["scale"].to(dtype) if "scale" in parts else values


DENSE: dict[str, Dense] = {Scheme.FP8: _scaled, Scheme.INT8: _scaled}
