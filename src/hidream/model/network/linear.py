"""A linear layer whose weight may be stored in another type, and to which requests may bring changes.

Shapes: T rows, I inputs, O outputs.

`weight` is an ordinary parameter of any float type, or `quantized` holds it in fewer bits; either way the product is
computed in the type of the input, by `product` (`products.py`). A *change* is what a LoRA adds to the layer's answer:
it travels with the request (`Conditioning.changes`), never on the module, so that two requests may draw with different
ones, even at once: `Spread` says which of the rows each of them has brought.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from hidream.formats.quantized import Quantized
from hidream.model.network.matmul import Product, laid_out, plain


class Change(Protocol):
    """A LoRA's change of one linear layer."""

    def __call__(self, x: Tensor, product: Tensor) -> Tensor:
        """What is added for inputs x [..., I], where the layer itself, without bias, gives `product` [..., O]."""


Changes = Mapping[str, Sequence[Change]]
"""Changes by the published name of the layer."""
Spread = tuple[tuple[slice, Changes], ...]
"""Which rows of a layer's input belong to requests that bring changes."""

UNCHANGED: Changes = {}
NOWHERE: Spread = ()


def everywhere(changes: Changes) -> Spread:
    """All rows belong to one request."""
    return ((slice(None), changes),) if changes else NOWHERE


class Linear(nn.Linear):
    """y = x·Wᵀ + b, with W in any type."""

    published = ""  # the layer's name in the published checkpoints
    quantized: Quantized | None = None  # if set, `weight` is None
    product: Product = staticmethod(plain)
    laid: Tensor | None = None  # the weight as `product` reads it best

    def reset_parameters(self) -> None:
        """Draw random weights; on the meta device, from which a file's take over, that would only cost time."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor, spread: Spread = NOWHERE) -> Tensor:
        """[..., I] to [..., O]."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = self.product(x, self.operand(x.dtype), bias)
        return changed(self.published, x, y, bias, spread)

    def operand(self, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype`, or what `product` takes for it."""
        return self.dense(dtype) if self.laid is None else self.laid

    def lay(self, laid: bool) -> None:
        """Keep a copy of the weight as `product` reads it best, or none; for inputs of the weight's type."""
        self.laid = laid_out(self.weight) if laid else None

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [O, I] in `dtype`; the weight itself where that is its type."""
        return self.weight.to(dtype) if self.quantized is None else self.quantized.dense(dtype)

    def store(self, weight: Quantized) -> None:
        """Hold the weight in fewer bits from now on."""
        self.quantized = weight
        self.register_parameter("weight", None)


def changed(name: str, x: Tensor, y: Tensor, bias: Tensor | None, spread: Spread) -> Tensor:
    """Add to y = x·Wᵀ + bias what the requests' changes of the layer `name` say, each on its own rows."""
    for rows, changes in spread:
        if name in changes:
            part = y[rows]
            product = part if bias is None else part - bias
            added = part
            for change in changes[name]:
                added = added + change(x[rows], product)
            y = _with_rows(y, rows, added)
    return y


def _with_rows(y: Tensor, rows: slice, part: Tensor) -> Tensor:
    if rows == slice(None):
        return part
    return torch.cat((y[: rows.start], part, y[rows.stop :]))
