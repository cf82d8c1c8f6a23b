"""A tiny HiDream-I1 with random weights, diffusers' own class on the same weights, and an autoencoder like FLUX's."""

from __future__ import annotations

import dataclasses

import torch
from diffusers import AutoencoderKL, HiDreamImageTransformer2DModel
from torch import Tensor

from hidream.model.latents import autoencoder_kl as kl
from hidream.model.network.config import TransformerConfig
from hidream.model.network.kernels import Kernels
from hidream.model.network.transformer import Transformer

FUSED, SEPARATE = Kernels(fused=True), Kernels()
CONFIG = TransformerConfig(
    num_layers=2,
    num_single_layers=3,
    attention_head_dim=32,
    num_attention_heads=4,
    caption_channels=(48, 40),
    text_emb_dim=24,
    axes_dims_rope=(16, 8, 8),
    max_resolution=(32, 32),
    llama_layers=(0, 1, 2, 2, 2),
)

SHORT = dataclasses.replace(CONFIG, num_layers=1, num_single_layers=2, llama_layers=(0, 1, 2))
"""One block of each kind, and a last one: for what compiles, which takes seconds for each block."""


def reference(config: TransformerConfig = CONFIG, seed: int = 0) -> HiDreamImageTransformer2DModel:
    """Diffusers' transformer, every weight random, large enough that each of them matters."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    model = HiDreamImageTransformer2DModel(**values).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.normal_(std=0.08, generator=generator)
    return model


def ours(
    of: HiDreamImageTransformer2DModel, config: TransformerConfig = CONFIG, kernels: Kernels = FUSED
) -> Transformer:
    """Our transformer with the reference's weights."""
    model = Transformer(config, kernels).eval().requires_grad_(False)
    model.load_state_dict(of.state_dict())
    model.prepare_weights()
    return model


def autoencoder_kl() -> AutoencoderKL:
    """An 8x autoencoder of the official class, with FLUX's scale and shift."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )


def our_autoencoder_kl() -> kl.AutoencoderKL:
    """The same network of ours, with random weights of its own."""
    config = kl.Config(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=16)
    return kl.AutoencoderKL(config).eval().requires_grad_(False)


def inputs(batch: int, height: int, width: int, tokens: int = 16, seed: int = 0) -> tuple[Tensor, ...]:
    """Latent, timestep, T5, Llama and pooled embeddings."""
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, CONFIG.in_channels, height, width, generator=g),
        torch.rand(batch, generator=g) * 1000,
        torch.randn(batch, tokens, CONFIG.caption_channels[0], generator=g),
        torch.randn(3, batch, tokens, CONFIG.caption_channels[1], generator=g),
        torch.randn(batch, CONFIG.text_emb_dim, generator=g),
    )


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
