"""Resolves the settings of device, compute type and weight format, which may be "auto"."""

from __future__ import annotations

import torch

from hidream.errors import ConfigurationError
from hidream.types import WeightFormat

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HOST = torch.device("cpu")


def resolve_device(name: str) -> torch.device:
    """Settle "auto". Raises ConfigurationError on a device that torch does not know or this machine does not have."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigurationError(f"the device {name!r} cannot be used: {error}") from error
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Settle "auto": float32 on a CPU, where 16-bit arithmetic may be a hundred times slower, else bfloat16."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    if name not in DTYPES:
        raise ConfigurationError(f"the dtype {name!r} is not known; accepted: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def resolve_weight_format(name: str) -> WeightFormat | None:
    """Settle a weight format by its name; None is "auto"."""
    if name != "auto" and name not in list(WeightFormat):
        raise ConfigurationError(f"the storage {name!r} is not known; accepted: auto, {', '.join(WeightFormat)}")
    return None if name == "auto" else WeightFormat(name)
