"""The autoencoder: encoding and decoding, the scale of latents, layout and tiles, for both classes of checkpoints."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tiny
import torch
from diffusers import AutoencoderDC, AutoencoderKL

from hidream.errors import CheckpointError
from hidream.model.checkpoint.checkpoint import Checkpoint, embedded
from hidream.model.latents.autoencoder import Autoencoder, load_autoencoder
from hidream.model.memory.candidates import TILE_PX
from hidream.model.pipeline import generate
from hidream.request import ImageRequest
from hidream.types import Size, Variant

CPU = torch.device("cpu")


def kl(seed: int = 0) -> Autoencoder:
    """A tiny autoencoder of FLUX's class, random."""
    torch.manual_seed(seed)
    return Autoencoder(tiny.autoencoder_kl().eval().requires_grad_(False), factor=8, scaling=0.3611, shift=0.1159)


def lies_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def test_there_and_back_is_nearly_the_same_image(dev):
    pixels = torch.from_numpy(generate(dev, ImageRequest("flat style a fox in the snow", Size(256, 256), 7)).pixels)
    image = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
    latent = dev.vae.encode(image)
    assert latent.shape == (1, 16, 16, 16)
    assert 0.5 < float(latent.std()) < 2  # the scale that the transformer was trained with
    assert float((dev.vae.decode(latent) - image).abs().mean()) < 0.05


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
        image = module.decode(latent / scaling + shift).sample
        torch.testing.assert_close(ours.decode(latent), image)
        encoded = module.encode(image)
        mode = encoded.latent_dist.mode() if kind is AutoencoderKL else encoded.latent
        torch.testing.assert_close(ours.encode(image), (mode - shift) * scaling)
    assert ours.factor == image.shape[-1] // 6


@pytest.mark.parametrize("kind", [AutoencoderKL, AutoencoderDC])
def test_channels_last_differ_by_rounding_only(dev, kind):
    ours = dev.vae if kind is AutoencoderDC else dataclasses.replace(kl(), channels_last=True)
    plain = dataclasses.replace(ours, channels_last=False)
    latent = torch.randn(1, 16, 12, 20, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        image, expected = ours.decode(latent), plain.decode(latent)
        assert lies_last(image)
        assert expected.is_contiguous()
        assert tiny.relative(image, expected) <= 1e-5
        encoded = ours.encode(expected)
        assert encoded.is_contiguous()  # what the sampler gets is laid out as ever
        assert tiny.relative(encoded, plain.encode(expected)) <= 1e-5


def test_channels_last_are_not_for_group_norm(tmp_path, dev):
    kl().module.save_pretrained(tmp_path / "vae")
    assert not load_autoencoder(Checkpoint(tmp_path), CPU, torch.float32).channels_last
    assert dev.vae.channels_last


def test_another_device_keeps_the_layout_it_gets():
    assert (
        dataclasses.replace(kl(), channels_last=True)
        ._in_memory_format(torch.empty(1, 16, 8, 8, device="meta"))
        .is_contiguous()
    )


def test_tiles_of_the_planned_side_give_nearly_the_same_image():
    ours, cells, kept = kl(), TILE_PX // 8, TILE_PX * 3 // 4
    latent = torch.randn(1, 16, 80, 72, generator=torch.Generator().manual_seed(1))
    whole, first = ours.decode(latent), ours.decode(latent[..., :cells, :cells])
    ours.tile(TILE_PX)
    tiled = ours.decode(latent)
    assert torch.equal(tiled[..., :kept, :kept], first[..., :kept, :kept])  # a tile is decoded as if it were all
    # random weights and latents make the most of what group norm sees of each tile; 0.019 to 0.037 were measured
    assert 0 < (tiled - whole).abs().mean() / whole.std() < 0.05
    small = latent[..., :cells, :cells]
    assert torch.equal(ours.decode(small), first)  # what fits into a tile is not cut


@torch.no_grad()
def test_tiles_for_a_while(dev):
    """Of both classes: within the block they are tiles, and afterwards all is as before."""
    for ours, latent in ((kl(), torch.randn(1, 16, 40, 40)), (dev.vae, torch.randn(1, 16, 24, 24))):
        whole, side = ours.decode(latent), 16 * ours.factor
        with ours.in_tiles(side):
            assert ours.tile_px == side
            assert not torch.equal(ours.decode(latent), whole)
        assert not ours.tile_px
        with ours.in_tiles(0):
            assert torch.equal(ours.decode(latent), whole)


def test_another_class_is_named(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(CheckpointError, match="UNet2DModel"):
        load_autoencoder(Checkpoint(tmp_path), CPU, torch.float32)
