"""The autoencoder: latents to pixels and back, by the network that the checkpoint's `vae/config.json` names.

HiDream-I1 uses FLUX's AutoencoderKL (16 channels, 8×), the embedded model an AutoencoderDC (16 channels, 16×).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hidream.errors import CheckpointError
from hidream.formats.detect import Published, class_in
from hidream.model.checkpoint.assign import Target, assign
from hidream.model.checkpoint.checkpoint import Checkpoint
from hidream.model.checkpoint.encoders import check_numbers
from hidream.model.checkpoint.inferred import autoencoder_config
from hidream.model.latents import autoencoder_dc, autoencoder_kl
from hidream.model.latents.autoencoder_dc import AutoencoderDC
from hidream.model.latents.autoencoder_kl import AutoencoderKL
from hidream.model.latents.tiles import in_tiles

CLASSES: Mapping[str, tuple[Any, Any]] = {
    "AutoencoderKL": (AutoencoderKL, autoencoder_kl.Config),
    "AutoencoderDC": (AutoencoderDC, autoencoder_dc.Config),
}
"""Networks and their configurations, by diffusers' names of the classes."""
LEVELS_MAX = 8
"""Of an autoencoder, each half as large as the one before; FLUX's has four, nano's six."""
CHANNELS_LAST = ("cpu",)
"""Devices with channels-last memory format, which oneDNN prefers: nano's decoder takes 16 % less time
at 1024², at 512² and 256² 0 to 4 % (benchmarks/decode.py). On CUDA and MPS it was not measured."""


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """A network, the numbers that lead from its latents to the transformer's, and how it computes.

    With `channels_last` what goes in is laid out so, and the layers pass it on; the weights stay as they are, so that
    those mapped from a file are not copied. The loader chooses it where the answer stays within 1e-5 of the largest
    value: not for group norm, which then sums up a CPU's image in plain float32 (torch 2.13). FLUX's decoder would
    take 3 to 9 % less time and up to a fifth less memory, but be off by 1e-5 at 256² and by 6e-5 at 512².

    With `tile_px` it encodes and decodes larger images in tiles of that side, blended where they overlap. It is for
    where memory is short (`plan.py` decides): overlaps are computed twice, and each tile is normed by itself.
    """

    module: AutoencoderKL | AutoencoderDC
    factor: int  # pixels per latent cell, along one side
    scaling: float
    shift: float
    channels_last: bool = False  # on the devices of CHANNELS_LAST
    tile_px: int | None = None  # None decodes whole images

    @property
    def dtype(self) -> torch.dtype:
        """The type in which it computes."""
        return next(self.module.parameters()).dtype

    def encode(self, image: Tensor) -> Tensor:
        """Turn an image [B, 3, H, W] in −1 to 1 into the transformer's latent [B, C, H/factor, W/factor]."""
        x, encode = self._in_memory_format(image.to(self.dtype)), self.module.encode
        latent = in_tiles(encode, x, self.tile_px, self.tile_px // self.factor) if self.tile_px else encode(x)
        return ((latent - self.shift) * self.scaling).contiguous()

    def decode(self, latent: Tensor) -> Tensor:
        """Turn the transformer's latent [B, C, h, w] into an image [B, 3, h·factor, w·factor] in about −1 to 1."""
        x = self._in_memory_format(latent.to(self.dtype) / self.scaling + self.shift)
        decode = self.module.decode
        return in_tiles(decode, x, self.tile_px // self.factor, self.tile_px) if self.tile_px else decode(x)

    def _in_memory_format(self, x: Tensor) -> Tensor:
        """Return x [B, C, H, W] in the memory format that its device computes fastest."""
        if self.channels_last and x.device.type in CHANNELS_LAST:
            return x.contiguous(memory_format=torch.channels_last)
        return x


def load_autoencoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """Build the class that the configuration names and give it the checkpoint's weights.

    A file without configuration is FLUX's autoencoder, in its own names (`ae.safetensors`) or those of diffusers.
    """
    autoencoder, published = open_autoencoder(checkpoint)
    assign(autoencoder.module, published.tensors, Target(device, dtype), published.path)
    autoencoder.module.eval().requires_grad_(False)
    return autoencoder


def open_autoencoder(checkpoint: Checkpoint) -> tuple[Autoencoder, Published]:
    """Build the autoencoder on the meta device, and open its files."""
    stated = checkpoint.config("vae")
    name = _class_name(stated, checkpoint.part("vae")) if stated is not None else "AutoencoderKL"
    published = checkpoint.read("vae")
    config = stated or autoencoder_config({name: tensor.shape for name, tensor in published.tensors.items()})
    kind, config_kind = CLASSES[name]
    known = {field.name for field in dataclasses.fields(config_kind)}
    given = {key: value for key, value in config.items() if key in known}
    check_numbers(given, len(published.tensors), published.path)
    _check_words(config, config_kind.ACCEPTED, published.path)
    levels = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    scaling, shift = config.get("scaling_factor"), config.get("shift_factor") or 0.0
    is_scaled = all(isinstance(number, int | float) and math.isfinite(number) for number in (scaling, shift))
    if not isinstance(levels, list) or not 0 < len(levels) <= LEVELS_MAX or not is_scaled or not scaling:
        raise CheckpointError(
            f"the configuration of {published.path} cannot be used: it has {levels!r:.100} channels, and values scaled "
            f"by {scaling!r:.50} and {shift!r:.50}; accepted: 1 to {LEVELS_MAX} numbers of channels, a scale, a shift"
        )
    try:
        with torch.device("meta"):
            module = kind(config_kind(**given))
    except Exception as error:  # nothing narrower: torch asserts, divides, looks up what a stranger wrote
        raise CheckpointError(
            f"the configuration of {published.path} cannot be used: its numbers do not fit together; "
            f"accepted: that of {name} as published"
        ) from error
    autoencoder = Autoencoder(
        module=module,
        factor=2 ** (len(levels) - 1),
        scaling=scaling,
        shift=shift,
        channels_last=not any(isinstance(part, nn.GroupNorm) for part in module.modules()),
    )
    return autoencoder, published


def _class_name(config: Mapping[str, Any], path: Path) -> str:
    name = class_in(config)
    if name not in CLASSES:
        raise CheckpointError(f"{path} names the class {name!r}; accepted: {' or '.join(CLASSES)}")
    return name


def _check_words(config: Mapping[str, Any], accepted: Mapping[str, tuple[str, ...]], path: Path) -> None:
    """Raise CheckpointError on a kind of layer that the network does not have."""
    for key in accepted.keys() & config.keys():
        words = config[key] if isinstance(config[key], list) else [config[key]]
        odd = next((word for word in words if word not in accepted[key]), None)
        if odd is not None:
            raise CheckpointError(
                f"the configuration of {path} cannot be used: it has {key} = {odd!r:.100}; "
                f"accepted: {' or '.join(accepted[key])}"
            )
