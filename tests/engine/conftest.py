"""A small model for the engine: a random transformer between nano's encoders and autoencoder."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hidream.model.loading import load
from hidream.model.model import Model
from hidream.model.network import bfloat16
from hidream.model.network.config import TransformerConfig
from hidream.model.network.kernels import Experts, Kernels
from hidream.model.network.transformer import Transformer
from hidream.types import Variant


@pytest.fixture(scope="session")
def nano() -> Model:
    return load(Variant.DEV)


@pytest.fixture(scope="session")
def small(nano) -> Model:
    """Some milliseconds a step."""
    had = nano.transformer.config
    config = dataclasses.replace(
        had,
        num_layers=1,
        num_single_layers=2,
        num_attention_heads=2,
        num_routed_experts=4,
        llama_layers=(0, 1, 2),
    )
    transformer = random_transformer(config)
    return dataclasses.replace(nano, transformer=transformer, refines=True, bfloat16_copy=bfloat16.copy_of(transformer))


def random_transformer(config: TransformerConfig) -> Transformer:
    torch.manual_seed(0)
    kernels = Kernels(onednn=True, experts=Experts.PER_EXPERT, fused=True, prepacked=True)
    transformer = Transformer(config, kernels).eval().requires_grad_(False)
    for parameter in transformer.parameters():
        parameter.normal_(std=0.08)
    transformer.prepare_weights()
    return transformer
