"""The autoencoder: latents to pixels and back, by the diffusers class that the checkpoint's `vae/config.json` names.

HiDream-I1 uses FLUX's AutoencoderKL (16 channels, 8×), the embedded model an AutoencoderDC (16 channels, 16×).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from hidream.errors import CheckpointError
from hidream.formats.detect import Published
from hidream.model.assign import Target, assign
from hidream.model.inferred import autoencoder_config
from hidream.model.weights import Checkpoint


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """A diffusers autoencoder and the numbers that lead from its latents to the transformer's."""

    module: Any
    factor: int  # pixels per latent cell, along one side
    scaling: float
    shift: float

    def encode(self, picture: Tensor) -> Tensor:
        """Turn a picture [B, 3, H, W] in −1 to 1 into the transformer's latent [B, C, H/factor, W/factor]."""
        encoded = self.module.encode(picture.to(self.module.dtype))
        latent: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        return (latent - self.shift) * self.scaling

    def tile(self, side_px: int) -> None:
        """From now on encode and decode larger pictures in tiles of `side_px`, blended where they overlap."""
        if hasattr(self.module, "tile_latent_min_size"):  # AutoencoderKL
            self.module.tile_sample_min_size, self.module.tile_latent_min_size = side_px, side_px // self.factor
            self.module.enable_tiling()
        else:
            stride = side_px * 3 // 4
            self.module.enable_tiling(side_px, side_px, stride, stride)

    def decode(self, latent: Tensor) -> Tensor:
        """Turn the transformer's latent [B, C, h, w] into a picture [B, 3, h·factor, w·factor] in about −1 to 1."""
        unscaled = latent.to(self.module.dtype) / self.scaling + self.shift
        return self.module.decode(unscaled, return_dict=False)[0]


def load_autoencoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """Build the class that the configuration names and give it the checkpoint's weights.

    A file without configuration is FLUX's autoencoder, in its own names (`ae.safetensors`) or those of diffusers.
    """
    autoencoder, published = outline_autoencoder(checkpoint)
    assign(autoencoder.module, published.tensors, Target(device, dtype), published.path)
    autoencoder.module.eval().requires_grad_(False)
    return autoencoder


def outline_autoencoder(checkpoint: Checkpoint) -> tuple[Autoencoder, Published]:
    """Build the autoencoder on the meta device, and open its files."""
    stated = checkpoint.config("vae")
    kind = _class(stated) if stated is not None else diffusers.AutoencoderKL
    published = checkpoint.read("vae")
    config = stated or autoencoder_config({name: tensor.shape for name, tensor in published.tensors.items()})
    known = inspect.signature(kind.__init__).parameters
    with torch.device("meta"):
        module = kind(**{key: value for key, value in config.items() if key in known})
    autoencoder = Autoencoder(
        module=module,
        factor=2 ** (len(config.get("block_out_channels") or config["encoder_block_out_channels"]) - 1),
        scaling=config["scaling_factor"],
        shift=config.get("shift_factor") or 0.0,
    )
    return autoencoder, published


def _class(config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - diffusers is untyped here
    name = str(config.get("_class_name"))
    kind = getattr(diffusers, name, None) if name.startswith("Autoencoder") else None
    if kind is None:
        raise CheckpointError(f"vae/config.json names the class {name!r}; accepted: an autoencoder of diffusers")
    return kind
