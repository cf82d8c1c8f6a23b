"""Generating from a latent in place of an image."""

import torch
from PIL import Image

from hidream.model.latents.init_image import open_init_image
from hidream.model.latents.init_latent import InitLatent
from hidream.model.pipeline import encode, finish, generate_latent, init_image_sizes, prepare
from hidream.request import ImageRequest
from hidream.types import Size
from image_files import saved

SIZE = Size(256, 256)


def request(**options):
    return ImageRequest("a red circle", SIZE, **{"seed": 3, "steps": 4} | options)


def latent_of(model, asked, start=None):
    prepared = prepare(model, asked, start)
    return generate_latent(model, prepared, model.text.embed(prepared.prompts).embeds, lambda *_: None), prepared


def test_it_is_the_image_whose_latent_it_is(dev):
    asked = request(image=saved(Image.new("RGB", (256, 256), (200, 30, 30))), strength=0.5)
    from_image, prepared = latent_of(dev, asked)
    with torch.inference_mode():
        latent = encode(dev, open_init_image(asked, init_image_sizes(dev, asked)), prepared.passes[0].grid)
    from_latent, same = latent_of(dev, request(strength=0.5), InitLatent(latent))
    assert torch.equal(from_latent, from_image)
    assert same.steps == prepared.steps == 2


def test_with_strength_1_only_the_noise_counts(dev):
    whole, _ = latent_of(dev, request())
    other, _ = latent_of(dev, request(strength=1.0), InitLatent(torch.randn(1, 16, 16, 16)))
    assert torch.equal(whole, other)


def test_what_the_mask_leaves_out_stays(dev):
    start = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 256, 256)
    mask[:, :, 128:] = 1
    made, prepared = latent_of(dev, request(), InitLatent(start, mask))
    assert torch.equal(made[..., :8], start[..., :8])
    assert not torch.allclose(made[..., 8:], start[..., 8:], atol=0.5)
    assert finish(dev, prepared, made).shape == (256, 256, 3)


def test_a_latent_of_another_size_is_scaled():
    start = InitLatent(torch.ones(1, 16, 8, 12), torch.ones(1, 64, 64))
    assert start.at(16, 24).shape == (1, 16, 16, 24)
    assert start.changes(16, 24).shape == (1, 1, 16, 24)
    assert InitLatent(torch.ones(1, 16, 8, 12)).changes(8, 12) is None
    assert start.nbytes == 4 * (16 * 8 * 12 + 64 * 64)
