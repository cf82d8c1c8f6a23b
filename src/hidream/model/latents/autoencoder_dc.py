"""The embedded model's autoencoder: residual blocks with RMS norm, and pixels folded into channels between levels.

Shapes: B batch, C channels, H and W of a level's image. A level halves or doubles the image's sides.

Computes the network, in diffusers' names of its tensors. Knows neither the scale of latents nor tiles; `autoencoder.py`
does. Has none of the attention that larger autoencoders of this class have (`EfficientViTBlock`).
Source: diffusers 0.42.1, AutoencoderDC (autoencoder_dc.py), whose results it equals bit for bit; arXiv:2410.10733.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5
"""Of every RMS norm."""
ACTIVATIONS = {"relu": F.relu, "silu": F.silu}


@dataclass(frozen=True, slots=True)
class Config:
    """The numbers of `vae/config.json`, with the defaults that diffusers has; widths and layers from the top level.

    Where the first level has no layers, the image is folded or unfolded right at the edge.
    """

    encoder_block_out_channels: Sequence[int] = (128, 256, 512, 512, 1024, 1024)
    decoder_block_out_channels: Sequence[int] = (128, 256, 512, 512, 1024, 1024)
    encoder_layers_per_block: Sequence[int] = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: Sequence[int] = (3, 3, 3, 3, 3, 3)
    in_channels: int = 3
    latent_channels: int = 32
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    decoder_conv_act_fn: str = "relu"

    ACCEPTED: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "encoder_block_types": ("ResBlock",),
        "decoder_block_types": ("ResBlock",),
        "decoder_norm_types": ("rms_norm",),
        "decoder_act_fns": ("silu",),
        "decoder_conv_act_fn": tuple(ACTIVATIONS),
        "upsample_block_type": ("pixel_shuffle",),
        "downsample_block_type": ("pixel_unshuffle",),
    }
    """The words that a field may have, or a list of them; `open_autoencoder` refuses others."""


class AutoencoderDC(nn.Module):
    """Images [B, 3, H, W] to latents [B, C, H/16, W/16] and back; with other levels than five by another factor."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def widest(self) -> int:
        """Channels of the decoder's widest tensor at full size, from which `footprint.decode_bytes` follows."""
        return self.config.decoder_block_out_channels[:2][-1]

    def encode(self, image: Tensor) -> Tensor:
        """Return the latent of an image."""
        return self.encoder(image)

    def decode(self, latent: Tensor) -> Tensor:
        """Return the image of a latent."""
        return self.decoder(latent)


class Encoder(nn.Module):
    """An image to its latent."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, layers = config.encoder_block_out_channels, config.encoder_layers_per_block
        edge: nn.Module = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.conv_in = edge if layers[0] else Downsample(config.in_channels, widths[1], shortcut=False)
        self.down_blocks = nn.ModuleList(
            nn.Sequential(
                *(ResBlock(width) for _ in range(count)),
                *(Downsample(width, below) for below in widths[level + 1 : level + 2] if count),
            )
            for level, (width, count) in enumerate(zip(widths, layers, strict=True))
        )
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)
        self.averaged = widths[-1] // config.latent_channels if config.encoder_out_shortcut else 0

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, H/16, W/16]."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        latent = self.conv_out(x)
        return latent + x.unflatten(1, (-1, self.averaged)).mean(2) if self.averaged else latent


class Decoder(nn.Module):
    """A latent to an image."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, layers = config.decoder_block_out_channels, config.decoder_layers_per_block
        last = widths[0] if layers[0] else widths[1]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.up_blocks = nn.ModuleList(
            nn.Sequential(
                *(Upsample(below, width) for below in widths[level + 1 : level + 2] if count),
                *(ResBlock(width) for _ in range(count)),
            )
            for level, (width, count) in enumerate(zip(widths, layers, strict=True))
        )
        self.norm_out = RMSNorm(last)
        self.activation = ACTIVATIONS[config.decoder_conv_act_fn]
        edge: nn.Module = nn.Conv2d(last, config.in_channels, 3, padding=1)
        self.conv_out = edge if layers[0] else Upsample(last, config.in_channels, shortcut=False)
        self.repeated = widths[-1] // config.latent_channels if config.decoder_in_shortcut else 0

    def forward(self, latent: Tensor) -> Tensor:
        """[B, C, H/16, W/16] to [B, 3, H, W]."""
        x = self.conv_in(latent)
        if self.repeated:
            x = x + _repeated(latent, self.repeated)
        for block in reversed(self.up_blocks):
            x = block(x)
        return self.conv_out(self.activation(self.norm_out(x)))


class ResBlock(nn.Module):
    """Two convolutions and a norm, added to what goes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        return self.norm(self.conv2(F.silu(self.conv1(x)))) + x


class RMSNorm(nn.Module):
    """Divides the channels of each place by their root mean square, then scales and shifts them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape; the mean is in float32."""
        mean = x.movedim(1, -1).float().pow(2).mean(-1, keepdim=True)  # [B, H, W, 1]
        x = (x.movedim(1, -1) * torch.rsqrt(mean + EPS)).to(self.weight.dtype)
        return (x * self.weight + self.bias).movedim(-1, 1)


class Downsample(nn.Module):
    """A convolution whose image is folded: each 2×2 pixels become one with four times the channels.

    The shortcut adds means of what goes in, folded likewise.
    """

    def __init__(self, before: int, width: int, *, shortcut: bool = True) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"a level has {width} channels; accepted: a multiple of 4")
        self.averaged = 4 * before // width if shortcut else 0
        self.conv = nn.Conv2d(before, width // 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H/2, W/2]."""
        folded = F.pixel_unshuffle(self.conv(x), 2)
        if not self.averaged:
            return folded
        return folded + F.pixel_unshuffle(x, 2).unflatten(1, (-1, self.averaged)).mean(2)


class Upsample(nn.Module):
    """A convolution whose channels are unfolded into 2×2 pixels; the shortcut adds repeats of what goes in."""

    def __init__(self, before: int, width: int, *, shortcut: bool = True) -> None:
        super().__init__()
        self.repeated = 4 * width // before if shortcut else 0
        self.conv = nn.Conv2d(before, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', 2H, 2W]."""
        unfolded = F.pixel_shuffle(self.conv(x), 2)
        return unfolded + F.pixel_shuffle(_repeated(x, self.repeated), 2) if self.repeated else unfolded


def _repeated(x: Tensor, times: int) -> Tensor:
    """Each channel `times` times: [B, C, H, W] to [B, C·times, H, W]."""
    return x.repeat_interleave(times, dim=1, output_size=x.shape[1] * times)
