"""A linear layer whose weight may be stored in another type, and to which a request may bring changes.

Shapes: I inputs, O outputs.

`weight` is an ordinary parameter of any float type, or `quantized` holds it in fewer bits; either way the product is
computed in the type of the input. A *change* is what a LoRA adds to the layer's answer: it travels with the request
(`Conditioning.changes`), never on the module, so that two requests may draw with different ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidream.formats.quantized import Quantized


class Change(Protocol):
    """A LoRA's change of one linear layer."""

    def __call__(self, x: Tensor, product: Tensor) -> Tensor:
        """What is added for inputs x [..., I], where the layer itself, without bias, gives `product` [..., O]."""


Changes = Mapping[str, Sequence[Change]]
"""Changes by the published name of the layer."""

UNCHANGED: Changes = {}


class Linear(nn.Linear):
    """y = x·Wᵀ + b, with W in any type."""

    published = ""  # the layer's name in the published checkpoints
    quantized: Quantized | None = None  # if set, `weight` is None

    def reset_parameters(self) -> None:
        """Draw random weights; on the meta device, from which a file's take over, that would only cost time."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor, changes: Changes = UNCHANGED) -> Tensor:
        """[..., I] to [..., O]."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = F.linear(x, self.dense(x.dtype), bias)
        return changed(self.published, x, y, bias, changes)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [O, I] in `dtype`; the weight itself where that is its type."""
        return self.weight.to(dtype) if self.quantized is None else self.quantized.dense(dtype)

    def store(self, weight: Quantized) -> None:
        """Hold the weight in fewer bits from now on."""
        self.quantized = weight
        self.register_parameter("weight", None)


def changed(name: str, x: Tensor, y: Tensor, bias: Tensor | None, changes: Changes) -> Tensor:
    """Add to y = x·Wᵀ + bias what the request's changes of the layer `name` say."""
    if name not in changes:
        return y
    product = y if bias is None else y - bias
    for change in changes[name]:
        y = y + change(x, product)
    return y
