"""Packing: parameters that are multiplied with the same input, laid side by side in one tensor.

A packed parameter keeps its published name; it becomes a view into the whole, so that nothing is stored twice and a
state dict looks as before. Moving a module to another device or type tears the views apart, which is why packing is
the last step of loading (`weights.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pack(parameters: Sequence[Tensor]) -> Tensor:
    """Lay parameters of shape [n_i, ...] into one tensor [Σ n_i, ...] and make each of them a view into it."""
    whole = torch.cat([parameter.data for parameter in parameters])
    parts = whole.split([parameter.shape[0] for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part
    return whole
