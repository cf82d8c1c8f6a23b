"""Explains an image that is not made of finite numbers: what it was computed with, and which weights are broken.

It reads the weights, which are tens of gigabytes, only after an image has failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from hidream.errors import NotFinite
from hidream.formats.quantized import Quantized
from hidream.model.memory.offload import own_tensors
from hidream.model.model import Model
from hidream.parts import ENCODERS
from hidream.request import ImageRequest

REMEDY = "float16 ends at 65,504; accepted: bfloat16 or float32 (`[compute] dtype`, HIDREAM_COMPUTE_DTYPE)"


def not_finite(model: Model, request: ImageRequest, where: str) -> NotFinite:
    """Make the error of an image whose values are not finite, seen first in `where`: "latents" or "pixels"."""
    _, dtype = model.transformer_of(request.mode)
    causes = [f"computed in {str(dtype).removeprefix('torch.')}"]
    if request.loras:
        causes.append(f"with the LoRAs {', '.join(f'{use.name} (weight {use.weight:g})' for use in request.loras)}")
    broken = None if request.loras else broken_weights(model)  # tens of GB: not where something else is to blame
    if broken:
        causes.append(f"with weights that are not finite themselves, {broken}")
    if dtype is torch.float16:
        causes.append(REMEDY)
    return NotFinite(f"the image has {where} that are not finite numbers: {'; '.join(causes)}")


def broken_weights(model: Model) -> str | None:
    """Name the first weight of a model that holds a value that is not finite, by its part and its key; else None."""
    encoders = {part.name: each for part, each in zip(ENCODERS, model.text.encoders, strict=True)}
    parts: Mapping[str, nn.Module] = {"transformer": model.transformer, "vae": model.vae.module, **encoders}
    return next((f"{part}: {key}" for part, module in parts.items() for key in _broken(module)), None)


def _broken(module: nn.Module) -> Iterator[str]:
    for name, part in module.named_modules():
        for attribute, value in own_tensors(part):
            if not _finite(value):
                yield f"{name}.{attribute}".removeprefix(".")


def _finite(value: Tensor | Quantized) -> bool:
    if isinstance(value, Quantized):
        value = value.dense(torch.float32)
    return not value.is_floating_point() or bool(torch.isfinite(value.float()).all())
