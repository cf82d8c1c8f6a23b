"""`generate` equals stock diffusers on the same folder, keeps its promise about seeds, and delivers the asked size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from reference import stock_picture, stock_pipeline

from hidream.errors import CheckpointError, ConfigurationError, InvalidInput, MissingInput
from hidream.model import pipeline
from hidream.model.pipeline import generate, load
from hidream.types import ImageRequest, Render, Size, Variant

PROMPT = "flat style a sailboat in the ocean"


def request(**changes: object) -> ImageRequest:
    return dataclasses.replace(ImageRequest(PROMPT, Size(256, 256), seed=7), **changes)


@pytest.mark.parametrize(
    ("variant", "ours", "theirs"),
    [
        (Variant.DEV, {}, {"num_inference_steps": 28, "guidance_scale": 0.0}),
        (
            Variant.FULL,
            {"steps": 10, "guidance": 4.0, "negative_prompt": "red"},
            {"num_inference_steps": 10, "guidance_scale": 4.0, "negative_prompt": "red"},
        ),
    ],
)
def test_equals_stock_diffusers(dev, full, variant, ours, theirs):
    expected = stock_picture(stock_pipeline(variant), PROMPT, 7, **theirs)
    pixels = generate({"dev": dev, "full": full}[variant], request(**ours)).pixels
    difference = np.abs(pixels.astype(float) - expected.permute(1, 2, 0).numpy() * 255)
    assert difference.max() <= 1.5  # of 255: half a step of rounding, and 1e-3 for the arithmetic
    assert difference.mean() <= 0.3


def test_same_seed_same_picture_whatever_else_runs(dev):
    first = generate(dev, request())
    torch.randn(1000)
    generate(dev, request(seed=8))
    assert np.array_equal(
        generate(dev, request(), on_step=lambda done, total: torch.randn(3).sum()).pixels, first.pixels
    )


def test_another_seed_is_another_picture(dev):
    assert not np.array_equal(generate(dev, request(steps=4)).pixels, generate(dev, request(steps=4, seed=8)).pixels)


def test_seeds_beyond_32_bits_differ_from_their_low_half(dev):
    low = generate(dev, request(steps=2, seed=9_999_999_999 % 2**32)).pixels
    assert not np.array_equal(generate(dev, request(steps=2, seed=9_999_999_999)).pixels, low)


@pytest.mark.parametrize("size", [Size(512, 512), Size(1000, 776), Size(1536, 512), Size(513, 1531)])
@pytest.mark.parametrize("render", [Render.BEST, Render.REFERENCE])
def test_size_is_exact(dev, size, render):
    picture = generate(dev, request(size=size, steps=1, render=render))
    assert picture.pixels.shape == (size.height, size.width, 3)
    assert picture.pixels.dtype == np.uint8


def test_native_draws_the_asked_size(dev, monkeypatch):
    grids = []
    original = pipeline.initial_noise
    monkeypatch.setattr(
        pipeline, "initial_noise", lambda model, grid, g: grids.append(grid) or original(model, grid, g)
    )
    generate(dev, request(size=Size(400, 320), steps=1, render=Render.NATIVE))
    assert grids == [(10, 13)]


def test_progress_is_told_and_may_end_the_picture(dev):
    seen = []

    def on_step(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        generate(dev, request(), on_step)
    assert seen == [(1, 28), (2, 28), (3, 28)]


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
        ({"size": Size(0, 512)}, InvalidInput),
    ],
)
def test_bad_requests_are_refused(changes, error):
    with pytest.raises(error, match=next(iter(changes)) if "size" not in changes else "width"):
        request(**changes)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="fast"):
        load(Variant.FAST)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load(Variant.DEV, tmp_path)
    with pytest.raises(ConfigurationError, match="warp"):
        load(Variant.DEV, device="warp")
    with pytest.raises(ConfigurationError, match="float8"):
        load(Variant.DEV, dtype="float8")
