"""The autoencoder: there and back, and the scale of its latents, for both classes that checkpoints use."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from diffusers import AutoencoderDC, AutoencoderKL

from hidream.errors import CheckpointError
from hidream.model.pipeline import generate
from hidream.model.vae import load_autoencoder
from hidream.model.weights import Checkpoint, embedded
from hidream.types import ImageRequest, Size, Variant

CPU = torch.device("cpu")


def test_there_and_back_is_nearly_the_same_picture(dev):
    pixels = torch.from_numpy(generate(dev, ImageRequest("flat style a fox in the snow", Size(256, 256), 7)).pixels)
    picture = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
    latent = dev.vae.encode(picture)
    assert latent.shape == (1, 16, 16, 16)
    assert 0.5 < float(latent.std()) < 2  # the scale that the transformer was trained with
    assert float((dev.vae.decode(latent) - picture).abs().mean()) < 0.05


@pytest.mark.parametrize("kind", [AutoencoderKL, AutoencoderDC])
def test_equals_diffusers_in_the_references_convention(tmp_path, kind):
    torch.manual_seed(0)
    if kind is AutoencoderKL:
        module = tiny.autoencoder_kl()
        shift = 0.1159
    else:
        module = AutoencoderDC.from_config(AutoencoderDC.load_config(embedded(Variant.DEV).part("vae")))
        shift = 0.0
    module.eval().save_pretrained(tmp_path / "vae")
    ours, scaling = load_autoencoder(Checkpoint(tmp_path), CPU, torch.float32), module.config.scaling_factor
    latent = torch.randn(1, 16, 4, 6)
    with torch.no_grad():
        picture = module.decode(latent / scaling + shift).sample
        torch.testing.assert_close(ours.decode(latent), picture)
        encoded = module.encode(picture)
        mode = encoded.latent_dist.mode() if kind is AutoencoderKL else encoded.latent
        torch.testing.assert_close(ours.encode(picture), (mode - shift) * scaling)
    assert ours.factor == picture.shape[-1] // 6


def test_another_class_is_named(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(CheckpointError, match="UNet2DModel"):
        load_autoencoder(Checkpoint(tmp_path), CPU, torch.float32)
