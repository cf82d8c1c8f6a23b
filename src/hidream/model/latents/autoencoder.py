"""The autoencoder: latents to pixels and back, by the diffusers class that the checkpoint's `vae/config.json` names.

HiDream-I1 uses FLUX's AutoencoderKL (16 channels, 8×), the embedded model an AutoencoderDC (16 channels, 16×).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from hidream.errors import CheckpointError
from hidream.formats.detect import Published, class_in
from hidream.model.checkpoint.assign import Target, assign
from hidream.model.checkpoint.checkpoint import Checkpoint
from hidream.model.checkpoint.encoders import check_numbers
from hidream.model.checkpoint.inferred import autoencoder_config

LEVELS_MAX = 8
"""Of an autoencoder, each half as large as the one before; FLUX's has four, nano's six."""
CHANNELS_LAST = ("cpu",)
"""Devices with channels-last memory format, which oneDNN prefers: nano's decoder takes 16 % less time
at 1024², at 512² and 256² 0 to 4 % (benchmarks/decode.py). On CUDA and MPS it was not measured."""


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """A diffusers autoencoder and the numbers that lead from its latents to the transformer's.

    With `channels_last` what goes in is laid out so, and the layers pass it on; the weights stay as they are, so that
    those mapped from a file are not copied. The loader chooses it where the answer stays within 1e-5 of the largest
    value: not for group norm, which then sums up a CPU's image in plain float32 (torch 2.13). FLUX's decoder would
    take 3 to 9 % less time and up to a fifth less memory, but be off by 1e-5 at 256² and by 6e-5 at 512².
    """

    module: Any
    factor: int  # pixels per latent cell, along one side
    scaling: float
    shift: float
    channels_last: bool = False  # on the devices of CHANNELS_LAST

    @property
    def tile_px(self) -> int:
        """The side of the tiles in which it decodes; 0 where it decodes an image whole."""
        if not getattr(self.module, "use_tiling", False):
            return 0
        names = ("tile_sample_min_size", "tile_sample_min_height")
        return next(int(getattr(self.module, name)) for name in names if hasattr(self.module, name))

    def encode(self, image: Tensor) -> Tensor:
        """Turn an image [B, 3, H, W] in −1 to 1 into the transformer's latent [B, C, H/factor, W/factor]."""
        encoded = self.module.encode(self._in_memory_format(image.to(self.module.dtype)))
        latent: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        return ((latent - self.shift) * self.scaling).contiguous()

    def tile(self, side_px: int) -> None:
        """From now on encode and decode larger images in tiles of `side_px`, blended where they overlap.

        For where memory is short (`plan.py` decides): overlaps are computed twice, and each tile is normed by itself.
        """
        if hasattr(self.module, "tile_latent_min_size"):  # AutoencoderKL
            self.module.tile_sample_min_size, self.module.tile_latent_min_size = side_px, side_px // self.factor
            self.module.enable_tiling()
        else:
            stride = side_px * 3 // 4
            self.module.enable_tiling(side_px, side_px, stride, stride)

    @contextmanager
    def in_tiles(self, side_px: int) -> Iterator[None]:
        """Within the block, encode and decode in tiles of `side_px`; 0 leaves it as it is."""
        before = {name: value for name, value in vars(self.module).items() if "til" in name}
        if side_px:
            self.tile(side_px)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self.module, name, value)

    def decode(self, latent: Tensor) -> Tensor:
        """Turn the transformer's latent [B, C, h, w] into an image [B, 3, h·factor, w·factor] in about −1 to 1."""
        unscaled = latent.to(self.module.dtype) / self.scaling + self.shift
        return self.module.decode(self._in_memory_format(unscaled), return_dict=False)[0]

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
    kind = _class(stated, checkpoint.part("vae")) if stated is not None else diffusers.AutoencoderKL
    published = checkpoint.read("vae")
    config = stated or autoencoder_config({name: tensor.shape for name, tensor in published.tensors.items()})
    known = inspect.signature(kind.__init__).parameters
    given = {key: value for key, value in config.items() if key in known}
    check_numbers(given, len(published.tensors), published.path)
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
            module = kind(**given)
    except Exception as error:  # nothing narrower: the library asserts, divides, looks up what a stranger wrote
        raise CheckpointError(
            f"the configuration of {published.path} cannot be used: its numbers do not fit together; "
            f"accepted: that of {kind.__name__} as published"
        ) from error
    autoencoder = Autoencoder(
        module=module,
        factor=2 ** (len(levels) - 1),
        scaling=scaling,
        shift=shift,
        channels_last=not any(isinstance(part, nn.GroupNorm) for part in module.modules()),
    )
    return autoencoder, published


def _class(config: Mapping[str, Any], path: Path) -> Any:  # noqa: ANN401 - diffusers is untyped here
    name = class_in(config)
    kind = getattr(diffusers, name, None) if name.startswith("Autoencoder") else None
    if kind is None:
        raise CheckpointError(f"{path} names the class {name!r}; accepted: an autoencoder of diffusers")
    return kind
