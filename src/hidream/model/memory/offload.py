"""The offload hook: a module whose weights live in host memory computes on a device with a copy of them.

Nothing is copied back: the host copy (in memory, or the mapping of a file) stays as it is while the copy is in use, and
is put back afterwards. So several large modules can share a device that has room for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hidream.model.network.linear import Linear


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Let `module` compute on `device` while the context lasts; for one thread, without gradients.

    Copies parameters, buffers and quantised weights; what is shared within the module is copied once. A module whose
    tensors are on `device` already is left as it is.
    """
    host_copies: list[tuple[nn.Module, str, Any]] = []
    copies: dict[int, Any] = {}
    try:
        for part in module.modules():
            for name, value in own_tensors(part):
                host_copies.append((part, name, value))
                if id(value) not in copies:
                    copies[id(value)] = copy_to(value, device)
                setattr(part, name, copies[id(value)])
        yield
    finally:
        for part, name, value in host_copies:
            setattr(part, name, value)


def own_tensors(part: nn.Module) -> list[tuple[str, Any]]:
    """Return one module's own parameters, buffers and quantised weight, by the name of the attribute."""
    values: list[tuple[str, Any]] = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
    if isinstance(part, Linear) and part.quantized is not None:
        values.append(("quantized", part.quantized))
    return values


def copy_to(value: Any, device: torch.device) -> Any:  # noqa: ANN401 - a parameter, a buffer or a Quantized
    """Return a copy on `device`; of a parameter, without its gradient."""
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().to(device), requires_grad=False)
    return value.to(device)
