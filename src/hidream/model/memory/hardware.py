"""What memory this machine has for a model."""

from __future__ import annotations

import sys

import psutil
import torch

from hidream.model.memory.candidates import Hardware
from hidream.model.memory.plan import CONTEXT_BYTES


def host_bytes() -> int:
    """Return the machine's own memory."""
    return int(psutil.virtual_memory().total)


def hardware_of(device: torch.device, memory_gb: float) -> Hardware:
    """Measure this machine; `memory_gb` (10^9 bytes) limits the device's memory, or the machine's own."""
    limit = round(memory_gb * 1e9) or sys.maxsize
    if device.type in ("cpu", "mps"):
        return Hardware(device.type, 0, min(host_bytes(), limit), fp8=device.type == "cpu")
    free, _total = torch.cuda.mem_get_info(device)
    return Hardware(device.type, min(free + CONTEXT_BYTES, limit), host_bytes())
