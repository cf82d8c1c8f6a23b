"""From settings to a model: the one place that knows both.

Imports torch and the model room, seconds of it; whoever must answer at once imports this file late.
"""

from __future__ import annotations

import dataclasses

import torch

from hidream.errors import ConfigurationError
from hidream.model.loading import Model, hardware_of, load, resolve_device
from hidream.model.ways import HOST_RESERVE_BYTES
from hidream.model.weights import Checkpoint
from hidream.settings import Compute, Settings
from hidream.types import Variant


def load_configured(variant: Variant, settings: Settings) -> Model:
    """Load the configured checkpoint of a variant, or without any configured the embedded one.

    Takes seconds to minutes, and settles how many threads torch uses in this process. Raises ConfigurationError as
    `settings.Models.parts` and `model/loading.load` do, and when `memory_gb` leaves nothing for a model.
    """
    models, compute = settings.models, settings.compute
    parts = models.parts(variant)
    _check_memory(compute)
    if compute.threads:
        torch.set_num_threads(compute.threads)
    model = load(
        variant,
        None if parts is None else Checkpoint(**parts),
        device=compute.device,
        dtype=compute.dtype,
        storage=compute.storage,
        memory_gb=compute.memory_gb,
        loras=models.loras,
        hash_cache=settings.hash_cache,
        compiled={"auto": None, "on": True, "off": False}[compute.compiled],
    )
    together = compute.texts_together == "on"
    return dataclasses.replace(model, text=dataclasses.replace(model.text, together=together))


def _check_memory(compute: Compute) -> None:
    """Refuse a limit below what the plan sets aside for the system, where the device's memory is the machine's."""
    if compute.memory_gb and hardware_of(resolve_device(compute.device), compute.memory_gb).device_budget <= 0:
        raise ConfigurationError(
            f"compute.memory_gb is {compute.memory_gb:g}, and {HOST_RESERVE_BYTES / 1e9:g} GB are set aside for the "
            "system; accepted: 0, or more than that"
        )
