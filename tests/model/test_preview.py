"""Previews look like what the autoencoder decodes, for any autoencoder."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from hidream.model.latents.autoencoder import Autoencoder
from hidream.model.latents.preview import fit_preview, synthetic_images
from hidream.model.pipeline import generate
from hidream.request import ImageRequest
from hidream.types import Size

PSNR_MIN_DB = 20.0
"""24.8 and 26.9 dB were measured on these images. By their mean colours alone they would have 13.4 and 15.9."""


class Mosaic(nn.Module):
    """An autoencoder that is linear: each cell's mean colour, spread over five channels."""

    factor = 4

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.mix = nn.Parameter(torch.randn(5, 3, generator=generator), requires_grad=False)
        self.offset = nn.Parameter(torch.randn(5, generator=generator), requires_grad=False)

    def encode(self, image):
        cells = F.avg_pool2d(image, self.factor)
        return torch.einsum("bchw,dc->bdhw", cells, self.mix) + self.offset[:, None, None]


@pytest.fixture(scope="module")
def preview(dev):
    return fit_preview(dev.vae)


def pooled(image, factor):
    """Mean colours of a decoded image's cells, as pixels [h, w, 3]."""
    cells = F.avg_pool2d(image.float().clamp(-1, 1), factor)[0]
    return ((cells + 1) * 127.5).permute(1, 2, 0).numpy()


def psnr_db(ours, theirs):
    return 10 * np.log10(255**2 / np.mean((ours.astype(float) - theirs) ** 2))


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["flat style a fox in the snow", "3d a frog"])
def test_looks_like_the_decoded_image(dev, preview, prompt):
    pixels = torch.from_numpy(generate(dev, ImageRequest(prompt, Size(256, 256), 0)).pixels)
    latent = dev.vae.encode(pixels.permute(2, 0, 1)[None].float() / 127.5 - 1)
    drawn, truth = preview.render(latent), pooled(dev.vae.decode(latent), dev.vae.factor)
    assert drawn.shape == truth.shape == (16, 16, 3)
    assert drawn.dtype == np.uint8
    assert psnr_db(drawn, truth) > PSNR_MIN_DB > psnr_db(truth.mean((0, 1)), truth)


@pytest.mark.parametrize("channel", range(3))
def test_red_is_red(dev, preview, channel):
    image = torch.full((1, 3, 128, 128), -0.8)
    image[:, channel] = 0.8
    mean = preview.render(dev.vae.encode(image)).astype(float).mean((0, 1))
    others = np.delete(mean, channel)
    assert mean[channel] > others.max() + 100  # of 255


def test_rows_and_columns_stay(dev, preview):
    image = torch.full((1, 3, 128, 256), -0.8)
    image[:, :, :64, 128:] = 0.8  # light at the upper right
    light = preview.render(dev.vae.encode(image)).astype(float).mean(-1) > 128
    assert light.shape == (8, 16)
    expected = np.zeros((8, 16), dtype=bool)
    expected[:4, 8:] = True
    assert (light == expected).mean() > 0.9


def test_a_linear_autoencoder_is_found_out():
    vae = Autoencoder(Mosaic(), factor=4, scaling=0.5, shift=0.1)
    image = synthetic_images(64)[:1].flip(-1)
    difference = fit_preview(vae).render(vae.encode(image)) - pooled(image, 4)
    assert np.abs(difference).max() < 3  # of 255: the ridge pulls towards grey


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_class_with_random_weights(dtype):
    torch.manual_seed(0)
    module = tiny.our_autoencoder_kl().to(dtype)
    preview = fit_preview(Autoencoder(module, factor=8, scaling=0.3611, shift=0.1159))
    assert preview.weight.shape == (16, 3)
    assert preview.weight.isfinite().all()
    assert not preview.weight.requires_grad
    assert preview.render(torch.randn(1, 16, 6, 9, dtype=dtype)).shape == (6, 9, 3)


def test_is_the_same_each_time_and_touches_no_other_randomness(dev, preview):
    before = torch.get_rng_state()
    again = fit_preview(dev.vae)
    assert torch.equal(again.weight, preview.weight)
    assert torch.equal(again.bias, preview.bias)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_images_to_fit_are_of_all_colours_and_in_range():
    images = synthetic_images(64)
    assert images.abs().max() <= 1
    assert images.std((0, 2, 3)).min() > 0.3  # each of red, green and blue
    assert images.mean((2, 3)).std(0).min() > 0.1  # and the images differ
