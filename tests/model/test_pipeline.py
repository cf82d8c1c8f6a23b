"""`generate` equals stock diffusers on the same folder, depends only on the seed, and has the requested size."""

from __future__ import annotations

import dataclasses
import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from reference import stock_image, stock_pipeline

from hidream.errors import CheckpointError, ConfigurationError, InvalidInput, MissingInput
from hidream.model import pipeline
from hidream.model.loading import load
from hidream.model.pipeline import generate
from hidream.model.sampling.sampler import schedule
from hidream.request import ImageRequest, LoraUse, Prompts
from hidream.types import Conformance, Render, Sampler, Size, Step, Variant

PROMPT = "flat style a sailboat in the ocean"


def request(**changes: object) -> ImageRequest:
    return dataclasses.replace(ImageRequest(PROMPT, Size(256, 256), seed=7), **changes)


@pytest.mark.parametrize(
    ("variant", "ours", "theirs"),
    [
        pytest.param(Variant.DEV, {}, {"num_inference_steps": 28, "guidance_scale": 0.0}, marks=pytest.mark.slow),
        (
            Variant.FULL,
            {"steps": 10, "guidance": 4.0, "negative_prompt": "red"},
            {"num_inference_steps": 10, "guidance_scale": 4.0, "negative_prompt": "red"},
        ),
    ],
)
def test_equals_stock_diffusers(dev, full, variant, ours, theirs):
    expected = stock_image(stock_pipeline(variant), PROMPT, 7, **theirs)
    pixels = generate({"dev": dev, "full": full}[variant], request(**ours)).pixels
    difference = np.abs(pixels.astype(float) - expected.permute(1, 2, 0).numpy() * 255)
    assert difference.max() <= 1.5  # of 255: half a step of rounding, and 1e-3 for the arithmetic
    assert difference.mean() <= 0.3


def test_same_seed_same_image_whatever_else_runs(dev):
    first = generate(dev, request())
    torch.randn(1000)
    generate(dev, request(seed=8))
    assert np.array_equal(generate(dev, request(), on_step=lambda step: torch.randn(3).sum()).pixels, first.pixels)


def test_another_seed_is_another_image(dev):
    assert not np.array_equal(generate(dev, request(steps=4)).pixels, generate(dev, request(steps=4, seed=8)).pixels)


def test_seeds_beyond_32_bits_differ_from_their_low_half(dev):
    low = generate(dev, request(steps=2, seed=9_999_999_999 % 2**32)).pixels
    assert not np.array_equal(generate(dev, request(steps=2, seed=9_999_999_999)).pixels, low)


@pytest.mark.parametrize(
    "size",
    [
        Size(512, 512),
        *(pytest.param(Size(*each), marks=pytest.mark.slow) for each in ((1000, 776), (1536, 512), (513, 1531))),
    ],
)
@pytest.mark.parametrize("render", [Render.BEST, Render.REFERENCE, Render.REFINE, Render.NATIVE])
def test_size_is_exact(dev, size, render):
    generated = generate(dev, request(size=size, steps=1, render=render))
    assert generated.pixels.shape == (size.height, size.width, 3)
    assert generated.pixels.dtype == np.uint8


def test_native_draws_the_asked_size(dev, monkeypatch):
    grids = []
    original = pipeline.initial_noise
    monkeypatch.setattr(
        pipeline, "initial_noise", lambda model, grid, g: grids.append(grid) or original(model, grid, g)
    )
    generate(dev, request(size=Size(400, 320), steps=1, render=Render.NATIVE))
    assert grids == [(10, 13)]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@pytest.fixture(scope="module")
def photo(dev) -> np.ndarray:
    """An image to start from, of another prompt."""
    return generate(dev, request(prompt="flat style a red apple on a blue background", seed=3)).pixels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "strengths"),
    # nano's Dev, distilled at guidance 5, leaves nothing of another subject from 0.3 on
    [(Variant.DEV, (0.1, 0.2, 1.0)), (Variant.FULL, (0.1, 0.5, 1.0))],
)
def test_strength_says_how_far_an_image_is_left(dev, full, variant, strengths, photo):
    model = {Variant.DEV: dev, Variant.FULL: full}[variant]
    far = [distance(generate(model, request(image=png(photo), strength=s)).pixels, photo) for s in strengths]
    assert far[0] < far[1] < far[2]
    assert far[0] < 12  # of 255: the autoencoder's own loss, and one step


def test_only_a_share_of_the_steps_is_taken(dev, photo):
    seen = []
    generate(dev, request(image=png(photo), strength=0.25), lambda step: seen.append((step.done, step.of)))
    assert seen[-1] == (7, 7)


@pytest.mark.parametrize(("size", "within"), [(Size(256, 256), 0), (Size(400, 304), 2)])  # of 255: Pillow rounds twice
def test_what_the_mask_protects_comes_back_to_the_last_pixel(dev, photo, size, within):
    mask = np.zeros((256, 256), np.uint8)
    mask[:, 128:] = 255
    drawn = generate(dev, request(image=png(photo), mask=png(mask), strength=1.0, size=size, steps=8)).pixels
    untouched = ImageOps.fit(Image.fromarray(photo), (size.width, size.height), Image.Resampling.BICUBIC)
    untouched = np.asarray(untouched).astype(int)
    half = size.width // 2
    assert np.abs(drawn[:, : half - 2] - untouched[:, : half - 2]).max() <= within
    assert distance(drawn[:, half + 20 :], untouched[:, half + 20 :]) > 10


@pytest.mark.slow
def test_an_init_image_of_one_line_takes_the_memory_of_the_output(dev):
    """Scaled before it is cut, 2000 × 1 would have two million columns: 25 GB (issue B2)."""
    line = np.full((1, 2000, 3), (200, 60, 40), np.uint8)
    for render in (Render.BEST, Render.REFINE):
        drawn = generate(dev, request(image=png(line), size=Size(1024, 1024), steps=2, strength=0.5, render=render))
        assert drawn.pixels.shape == (1024, 1024, 3)
        assert np.abs(drawn.pixels.mean(axis=(0, 1)) - line[0, 0]).max() < 40


def test_warnings_about_an_init_image_come_with_the_image(dev, photo):
    nothing = png(np.zeros((256, 256), np.uint8))
    generated = generate(dev, request(image=png(photo), mask=nothing, steps=2))
    assert [said.split(";")[0] for said in generated.warnings] == ["the mask lets no part of the image change"]
    assert np.array_equal(generated.pixels, photo)


def test_a_hole_is_drawn_anew_and_all_else_stays(dev, photo):
    image = np.dstack([photo, np.full((256, 256), 255, np.uint8)])
    image[64:192, 64:192] = 0
    generated = generate(dev, request(image=png(image), strength=1.0, steps=8))
    kept = np.ones((256, 256), bool)
    kept[64:192, 64:192] = False
    assert np.array_equal(generated.pixels[kept], photo[kept])
    assert "image has transparent parts" in generated.warnings[0]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("image", {"image": b"not an image"}),
        ("mask", {"image": png(np.zeros((8, 8, 3), np.uint8)), "mask": b""}),
        ("mask", {"image": png(np.zeros((8, 8, 3), np.uint8)), "mask": png(np.zeros((8, 9), np.uint8))}),
        ("loras", {"loras": (LoraUse("nobody"),)}),
    ],
)
def test_files_and_names_that_cannot_be_used_are_named(dev, field, changes):
    with pytest.raises(InvalidInput, match=field):
        generate(dev, request(steps=1, **changes))


def test_refining_draws_the_tail_on_the_larger_grid(dev, monkeypatch):
    grids, steps = [], []
    original = pipeline.initial_noise
    monkeypatch.setattr(
        pipeline, "initial_noise", lambda model, grid, g: grids.append(grid) or original(model, grid, g)
    )
    asked = request(size=Size(512, 384), steps=6, render=Render.REFINE)
    generated = generate(dev, asked, lambda step: steps.append((step.done, step.of)))
    assert generated.pixels.shape == (384, 512, 3)
    assert grids == [(7, 9), (12, 16)]
    below = sum(sigma <= pipeline.REFINE_FROM for sigma in schedule(Sampler.FLASH, 6, 6.0).sigmas[:-1])
    assert steps[-1] == (6 + below, 6 + below)


def test_the_default_refines_where_the_model_can(dev):
    asked = request(size=Size(1024, 1024))
    preset = pipeline.resolve(dev, asked)
    assert len(pipeline.plan_passes(dev, asked, preset)) == 1  # nano cannot, and says so
    able = dataclasses.replace(dev, refines=True)
    assert len(pipeline.plan_passes(able, asked, preset)) == 2
    assert len(pipeline.plan_passes(able, request(size=Size(272, 256)), preset)) == 1
    assert len(pipeline.plan_passes(able, request(size=Size(1024, 1024), render=Render.SCALED), preset)) == 1


def test_samplers_and_conformance_are_chosen_by_the_request(dev, full):
    images = [generate(full, request(steps=4, sampler=sampler)).pixels for sampler in Sampler]
    assert all(distance(a, b) > 0.5 for a, b in itertools.combinations(images, 2))
    calls = []
    generate(dev, request(steps=4, conformance=Conformance.OFFICIAL), lambda step: calls.append(step.of))
    assert calls == [3, 3, 3]


def test_a_long_prompt_is_told(dev):
    assert generate(dev, request(steps=1)).warnings == ()
    warnings = generate(dev, request(steps=1, prompt=PROMPT + " and a dog" * 20)).warnings
    assert warnings
    assert all("too long" in warning for warning in warnings)


def test_encoders_may_be_told_different_things(dev):
    same = generate(dev, request(steps=2, prompt=Prompts(PROMPT))).pixels
    assert np.array_equal(same, generate(dev, request(steps=2)).pixels)
    other = generate(dev, request(steps=2, prompt=Prompts(PROMPT, llama="a cat at night"))).pixels
    assert not np.array_equal(other, same)


def test_progress_is_told_and_may_end_the_image(dev):
    seen = []

    def on_step(step: Step) -> None:
        seen.append(step)
        if step.done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        generate(dev, request(), on_step)
    assert seen == [Step(1, 28), Step(2, 28), Step(3, 28)]


def test_negative_prompt_and_guidance_count_on_full_only(dev, full):
    plain = generate(dev, request(steps=2)).pixels
    assert np.array_equal(generate(dev, request(steps=2, negative_prompt="blue")).pixels, plain)
    guided = generate(full, request(steps=2)).pixels
    assert not np.array_equal(generate(full, request(steps=2, negative_prompt="blue")).pixels, guided)


def test_timings_add_up(dev):
    timings = generate(dev, request(steps=2)).timings
    assert timings.inference_s == pytest.approx(timings.text_s + timings.denoise_s + timings.decode_s)
    assert min(timings.text_s, timings.denoise_s, timings.decode_s) > 0


def test_version_names_variant_weights_and_arithmetic(dev, full):
    variant, digest, mode, arithmetic, _ = dev.version.split("/")
    assert (variant, mode, arithmetic) == ("hidream-i1-dev", "exact", "cpu-float32")
    assert len(digest) == 12
    assert digest != full.version.split("/")[1]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"prompt": " \n"}, MissingInput),
        ({"seed": -1}, InvalidInput),
        ({"seed": 10**10}, InvalidInput),
        ({"steps": 0}, InvalidInput),
        ({"guidance": -1.0}, InvalidInput),
        ({"shift": float("nan")}, InvalidInput),
        ({"strength": 0.0}, InvalidInput),
        ({"mask": b""}, MissingInput),
        ({"size": Size(0, 512)}, InvalidInput),
    ],
)
def test_bad_requests_are_refused(changes, error):
    with pytest.raises(error, match=next(iter(changes)) if "size" not in changes else "width"):
        request(**changes)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load(Variant.DEV, tmp_path)
    with pytest.raises(ConfigurationError, match="warp"):
        load(Variant.DEV, device="warp")
    with pytest.raises(ConfigurationError, match="float8"):
        load(Variant.DEV, dtype="float8")
