"""A linear layer whose weight may be quantised, and to which requests may add LoRA deltas.

Shapes: T rows, I inputs, O outputs.

`weight` is an ordinary parameter of any float type, or `quantized` holds it in fewer bits. Either way the product is
computed in the type of the input, by `matmul` (`matmul.py`). A *delta* is what a LoRA adds to the layer's output. It
belongs to the request (`Conditioning.deltas`), never to the module, so that two requests may use different LoRAs in one
batch: the row-to-adapter map, `RowAdapters`, says which rows have which deltas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from hidream.formats.quantized import Quantized
from hidream.model.network.matmul import Matmul, linear, prepacked_copy


class LoraDelta(Protocol):
    """What a LoRA adds to one linear layer."""

    def __call__(self, x: Tensor, product: Tensor) -> Tensor:
        """Return the delta for inputs x [..., I], where the layer itself, without bias, gives `product` [..., O]."""


LoraDeltas = Mapping[str, Sequence[LoraDelta]]
"""Deltas by the published name of the layer."""
RowAdapters = tuple[tuple[slice, LoraDeltas], ...]
"""The row-to-adapter map: which rows of a layer's input belong to requests with LoRAs, and their deltas."""

NO_DELTAS: LoraDeltas = {}
NO_ADAPTERS: RowAdapters = ()


def all_rows(deltas: LoraDeltas) -> RowAdapters:
    """Map all rows to one request's deltas."""
    return ((slice(None), deltas),) if deltas else NO_ADAPTERS


class Linear(nn.Linear):
    """y = x·Wᵀ + b, with W in any type."""

    published = ""  # the layer's name in the published checkpoints
    quantized: Quantized | None = None  # if set, `weight` is None
    prepacked: Tensor | None = None  # a copy of the weight in oneDNN's layout

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        matmul: Matmul = linear,
    ) -> None:
        super().__init__(in_features, out_features, bias, device)
        self.matmul = matmul

    def reset_parameters(self) -> None:
        """Draw random weights, but not on the meta device, where a file's weights will take over."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor, adapters: RowAdapters = NO_ADAPTERS) -> Tensor:
        """[..., I] to [..., O]."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = self.matmul(x, self.operand(x.dtype), bias)
        return with_deltas(self.published, x, y, bias, adapters)

    def operand(self, dtype: torch.dtype) -> Tensor:
        """Return what `matmul` multiplies with: the prepacked copy, or the weight in `dtype`."""
        return self.dense(dtype) if self.prepacked is None else self.prepacked

    def prepack(self) -> None:
        """Keep a copy of the weight in oneDNN's layout; for inputs of the weight's type."""
        self.prepacked = prepacked_copy(self.weight)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [O, I] in `dtype`; the weight itself where that is its type."""
        return self.weight.to(dtype) if self.quantized is None else self.quantized.dense(dtype)

    def store(self, weight: Quantized) -> None:
        """Hold the weight in fewer bits from now on."""
        self.quantized = weight
        self.register_parameter("weight", None)


def with_deltas(name: str, x: Tensor, y: Tensor, bias: Tensor | None, adapters: RowAdapters) -> Tensor:
    """Add to y = x·Wᵀ + bias the requests' deltas of the layer `name`, each on its own rows."""
    for rows, deltas in adapters:
        if name in deltas:
            part = y[rows]
            product = part if bias is None else part - bias
            added = part
            for delta in deltas[name]:
                added = added + delta(x[rows], product)
            y = _with_rows(y, rows, added)
    return y


def _with_rows(y: Tensor, rows: slice, part: Tensor) -> Tensor:
    if rows == slice(None):
        return part
    return torch.cat((y[: rows.start], part, y[rows.stop :]))
