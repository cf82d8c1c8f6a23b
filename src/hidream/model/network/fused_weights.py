"""Fused weights: parameters that are multiplied with the same input share one tensor.

A fused parameter keeps its published name. It becomes a view of the shared tensor, so that nothing is stored twice and
a state dict looks as before. Moving a module to another device or type would separate the views: fuse after that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fuse(parameters: Sequence[Tensor]) -> Tensor:
    """Concatenate parameters of shape [n_i, ...] to one tensor [Σ n_i, ...] and make each of them a view of it."""
    fused = torch.cat([parameter.data for parameter in parameters])
    parts = fused.split([parameter.shape[0] for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part
    return fused
