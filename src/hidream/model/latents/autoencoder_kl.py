"""FLUX's autoencoder, which HiDream-I1 uses: residual blocks on four levels, and attention at the lowest.

Shapes: B batch, C channels, H and W of a level's image. A level halves or doubles the image's sides.

Computes the network, in diffusers' names of its tensors. Knows neither the scale of latents nor tiles; `autoencoder.py`
does. Source: diffusers 0.42.1, AutoencoderKL (autoencoder_kl.py, vae.py, unet_2d_blocks.py, resnet.py,
attention_processor.py), whose results it equals bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6
"""Of every group norm."""


@dataclass(frozen=True, slots=True)
class Config:
    """The numbers of `vae/config.json`, with the defaults that diffusers has; widths from the top level."""

    block_out_channels: Sequence[int]
    layers_per_block: int = 1
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    ACCEPTED: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "act_fn": ("silu",),
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
    }
    """The words that a field may have, or a list of them; `open_autoencoder` refuses others."""


class AutoencoderKL(nn.Module):
    """Images [B, 3, H, W] to latents [B, C, H/8, W/8] and back; with other levels than four by another factor."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.use_post_quant_conv else None

    @property
    def widest(self) -> int:
        """Channels of the decoder's widest tensor at full size, from which `footprint.decode_bytes` follows."""
        return self.config.block_out_channels[:2][-1]

    def encode(self, image: Tensor) -> Tensor:
        """Return the mean of the latent's distribution, its most probable value."""
        x = self.encoder(image)
        if self.quant_conv is not None:
            x = self.quant_conv(x)
        return x.chunk(2, dim=1)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """Return the image of a latent."""
        if self.post_quant_conv is not None:
            latent = self.post_quant_conv(latent)
        return self.decoder(latent)


class Encoder(nn.Module):
    """An image to mean and log variance of its latent, one after the other in the channels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(before, width, config.layers_per_block, groups, halves=level < len(widths) - 1)
            for level, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
        )
        self.mid_block = MidBlock(widths[-1], groups, attends=config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, 2C, H/8, W/8]."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """A latent to an image."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups, attends=config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            UpBlock(before, width, config.layers_per_block + 1, groups, doubles=level < len(widths) - 1)
            for level, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H/8, W/8] to [B, 3, H, W]."""
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class DownBlock(nn.Module):
    """A level of the encoder."""

    def __init__(self, before: int, width: int, layers: int, groups: int, *, halves: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(width if i else before, width, groups) for i in range(layers))
        self.downsamplers = nn.ModuleList([Downsample(width)] if halves else [])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H/2, W/2], or of the same size on the last level."""
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """A level of the decoder."""

    def __init__(self, before: int, width: int, layers: int, groups: int, *, doubles: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(width if i else before, width, groups) for i in range(layers))
        self.upsamplers = nn.ModuleList([Upsample(width)] if doubles else [])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', 2H, 2W], or of the same size on the last level."""
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class MidBlock(nn.Module):
    """The lowest level: attention between two residual blocks."""

    def __init__(self, width: int, groups: int, *, attends: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(width, width, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(width, groups)] if attends else [])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        for layer in (self.resnets[0], *self.attentions, self.resnets[1]):
            x = layer(x)
        return x


class ResnetBlock(nn.Module):
    """Two convolutions, each behind a group norm and SiLU, added to what goes in."""

    def __init__(self, before: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, EPS)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, width, 1) if before != width else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Attention(nn.Module):
    """Attention of one head between all places of an image, added to what goes in."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        h = self.group_norm(x.flatten(2)).transpose(1, 2)  # [B, HW, C]
        q, k, v = (layer(h)[:, None] for layer in (self.to_q, self.to_k, self.to_v))  # [B, 1, HW, C]
        h = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return h.transpose(1, 2).reshape(x.shape) + x


class Downsample(nn.Module):
    """A convolution of stride 2, padded at the right and at the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H/2, W/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Each pixel four times, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0))
