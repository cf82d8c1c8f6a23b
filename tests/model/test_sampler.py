"""Our samplers against diffusers', and the official repository's printed numbers; `test_official.py` has the rest."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, UniPCMultistepScheduler
from diffusers.pipelines.hidream_image.pipeline_hidream_image import calculate_shift

from hidream.model.network.config import official_shift
from hidream.model.sampling import sampler
from hidream.types import SAMPLING_PRESETS, Conformance, Sampler, Variant

# HiDream-ai/HiDream-I1 @9b42dd6: what its own schedulers print for inference.py's settings
OFFICIAL = {
    Variant.DEV: "1000 993.67 986.93 979.73 972.02 963.76 954.88 945.3 934.95 923.71 911.48 898.12 883.46 867.31 "
    "849.42 829.49 807.17 781.98 753.33 720.48 682.4 637.76 584.69 520.56 441.51 341.64 211.48 34.78",
    Variant.FAST: "1000 976.82 951.38 923.34 892.29 857.69 818.92 775.17 725.42 668.33 602.15 524.53 432.23 320.62 "
    "182.97 8.93",
}


def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """Stands for the model: smooth, and different at every time."""
    return torch.sin(3 * x) * (0.5 + t / 1000) + 0.1 * x


@pytest.mark.parametrize("variant", OFFICIAL)
def test_flash_times_are_the_official_ones(variant):
    preset = SAMPLING_PRESETS[variant]
    ours = sampler.schedule(preset.sampler, preset.steps, preset.shift).timesteps
    official = [float(t) for t in OFFICIAL[variant].split()]
    assert len(ours) == len(official)
    assert max(abs(a - b) for a, b in zip(ours, official, strict=True)) < 0.01


@pytest.mark.parametrize(("steps", "shift"), [(28, 6.0), (16, 3.0), (4, 1.0), (1, 6.0)])
def test_flash_equals_diffusers(steps, shift):
    theirs = FlowMatchLCMScheduler(shift=shift)
    theirs.set_timesteps(steps)
    ours = sampler.schedule(Sampler.FLASH, steps, shift)
    torch.testing.assert_close(torch.tensor(ours.sigmas), theirs.sigmas, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(ours.timesteps), theirs.timesteps, rtol=1e-6, atol=1e-3)

    x = y = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    state, generator = (
        sampler.SamplerState(ours, torch.Generator().manual_seed(7)),
        torch.Generator().manual_seed(7),
    )
    for i, t in enumerate(theirs.timesteps):
        x, state = sampler.step(Sampler.FLASH, x, velocity(x, ours.timesteps[i]), state, i)
        y = theirs.step(velocity(y, float(t)), t, y, generator=generator, return_dict=False)[0]
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("steps", "shift"), [(50, 3.0), (25, 3.158), (3, 3.0), (2, 1.0), (1, 3.0)])
def test_unipc_equals_diffusers(steps, shift):
    theirs = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift)
    theirs.set_timesteps(steps)
    ours = sampler.schedule(Sampler.UNIPC, steps, shift)
    torch.testing.assert_close(torch.tensor(ours.sigmas), theirs.sigmas, rtol=0, atol=1e-6)
    assert [int(t) for t in ours.timesteps] == theirs.timesteps.tolist()

    x = y = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    state = sampler.SamplerState(ours, torch.Generator())
    for i, t in enumerate(theirs.timesteps):
        x, state = sampler.step(Sampler.UNIPC, x, velocity(x, ours.timesteps[i]), state, i)
        y = theirs.step(velocity(y, float(t)), t, y, return_dict=False)[0]
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("steps", "shift"), [(30, 3.0), (28, 6.0), (4, 1.0), (1, 3.0)])
def test_euler_equals_diffusers(steps, shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    ours = sampler.schedule(Sampler.EULER, steps, shift)
    torch.testing.assert_close(torch.tensor(ours.sigmas), theirs.sigmas, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(ours.timesteps), theirs.timesteps, rtol=1e-6, atol=1e-3)

    x = y = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    state = sampler.SamplerState(ours, torch.Generator())
    for i, t in enumerate(theirs.timesteps):
        x, state = sampler.step(Sampler.EULER, x, velocity(x, ours.timesteps[i]), state, i)
        y = theirs.step(velocity(y, float(t)), t, y, return_dict=False)[0]
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", Sampler)
def test_every_sampler_finds_the_image_of_a_straight_path(kind):
    """With the velocity of the straight path from noise to an image, each arrives there, in any number of steps."""
    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for steps in (1, 2, 7):
        schedule = sampler.schedule(kind, steps, 3.0)
        state = sampler.SamplerState(schedule, torch.Generator().manual_seed(2))
        x = torch.randn(image.shape, generator=state.generator)
        for i in range(schedule.steps):
            x, state = sampler.step(kind, x, (x - image) / schedule.sigmas[i], state, i)
        torch.testing.assert_close(x, image, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [256, 4096, 4608])
def test_official_shift_is_the_one_that_diffusers_has_commented_out(tokens):
    assert official_shift(tokens) == pytest.approx(math.exp(calculate_shift(tokens)), rel=1e-12)


@pytest.mark.parametrize("kind", Sampler)
def test_the_official_flash_alone_leaves_its_last_step_out(kind):
    ours, official = (sampler.schedule(kind, 8, 3.0, conformance) for conformance in Conformance)
    assert official.steps == (7 if kind is Sampler.FLASH else 8)
    if kind is not Sampler.UNIPC:  # whose official levels are others
        assert official.timesteps == ours.timesteps[: official.steps]


@pytest.mark.parametrize(
    ("seed", "starts_with"), [(0, 0), (2**32 - 1, 2**32 - 1), (2**32, 3418114165), (9999999999, 342802008)]
)
def test_a_seed_of_any_size_means_the_same_for_ever(seed, starts_with):
    assert sampler.generator_of(seed).initial_seed() == starts_with


def test_every_draw_comes_from_the_requests_own_generator():
    schedule = sampler.schedule(Sampler.FLASH, 4, 6.0)

    def run(disturb: bool) -> torch.Tensor:
        state = sampler.SamplerState(schedule, torch.Generator().manual_seed(3))
        x = torch.zeros(1, 4, 4, 4)
        for i in range(4):
            if disturb:
                torch.randn(100)  # somebody else draws from the global generator
            x, state = sampler.step(Sampler.FLASH, x, velocity(x, 500), state, i)
        return x

    before = torch.get_rng_state()
    assert torch.equal(run(False), run(True))
    torch.set_rng_state(before)
    run(False)
    assert torch.equal(torch.get_rng_state(), before)
