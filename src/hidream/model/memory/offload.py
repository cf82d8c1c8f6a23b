"""A module that lives in host memory and computes on a device: moved in, used, forgotten there.

Nothing is copied back: what a module holds at home (in memory, or as the mapping of a file) stays there untouched while
the copy works, and is taken up again afterwards. So that several large modules can share a device that holds only one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hidream.model.network.linear import Linear


@contextmanager
def visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Let `module` compute on `device` as long as the context lasts; for one thread, without gradients.

    Takes parameters, buffers and quantised weights; what is shared within the module is copied once. A module whose
    tensors are on `device` already stays as it is.
    """
    home: list[tuple[nn.Module, str, Any]] = []
    copies: dict[int, Any] = {}
    try:
        for part in module.modules():
            for name, value in held(part):
                home.append((part, name, value))
                if id(value) not in copies:
                    copies[id(value)] = moved(value, device)
                setattr(part, name, copies[id(value)])
        yield
    finally:
        for part, name, value in home:
            setattr(part, name, value)


def held(part: nn.Module) -> list[tuple[str, Any]]:
    """Parameters, buffers and quantised weight that one module holds itself, by the name of the attribute."""
    values: list[tuple[str, Any]] = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
    if isinstance(part, Linear) and part.quantized is not None:
        values.append(("quantized", part.quantized))
    return values


def moved(value: Any, device: torch.device) -> Any:  # noqa: ANN401 - a parameter, a buffer or a Quantized
    """The same on `device`; a parameter without its gradient."""
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().to(device), requires_grad=False)
    return value.to(device)
