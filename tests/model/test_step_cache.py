"""Which steps ask the model, what stands for its answer, and how near the image stays, on nano."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hidream.model.network.transformer import Transformer
from hidream.model.pipeline import generate
from hidream.model.sampling import sampler
from hidream.model.sampling.sampler import SamplerState, Schedule
from hidream.model.sampling.step_cache import FEWEST, SAVING, SETTLED, SLOPE, History, plan
from hidream.request import ImageRequest
from hidream.types import SAMPLING_PRESETS, Mode, Sampler, Size, Variant

SAVING_MODES = [Mode.BALANCED, Mode.TURBO]
NANO_TOKENS = 64


def schedule_of(variant: Variant) -> Schedule:
    preset = SAMPLING_PRESETS[variant]
    return sampler.schedule(preset.sampler, preset.steps, preset.shift)


def tail(schedule: Schedule, start: int) -> Schedule:
    return Schedule(schedule.sigmas[start:], schedule.timesteps[start:])


def levels(asked: tuple[bool, ...], schedule: Schedule) -> list[float]:
    return [sigma for sigma, ask in zip(schedule.sigmas, asked, strict=False) if ask]


@pytest.mark.parametrize(
    ("variant", "calls"), [(Variant.DEV, (28, 14, 8)), (Variant.FULL, (50, 25, 14)), (Variant.FAST, (16, 8, 4))]
)
@pytest.mark.parametrize("tokens", [NANO_TOKENS, 1024, 4096])
def test_calls_of_the_variants(variant, calls, tokens):
    schedule = schedule_of(variant)
    assert tuple(sum(plan(mode, SAMPLING_PRESETS[variant].sampler, schedule, tokens)) for mode in Mode) == calls


schedules = st.builds(
    lambda kind, steps, shift, start: (kind, tail(sampler.schedule(kind, steps, shift), int(start * (steps - 1)))),
    st.sampled_from(Sampler),
    st.integers(1, 200),
    st.sampled_from([0.1, 1.0, 3.0, 6.0, 100.0]),
    st.floats(0, 1),
)


@given(drawn=schedules, tokens=st.integers(1, 9216))
def test_any_schedule_gets_a_sensible_plan(drawn, tokens):
    kind, schedule = drawn
    assert all(plan(Mode.EXACT, kind, schedule, tokens))
    calls = []
    for mode in SAVING_MODES:
        asked = plan(mode, kind, schedule, tokens)
        assert len(asked) == schedule.steps
        assert asked[0]
        assert all(sigma >= SETTLED for sigma in levels(asked, schedule)[1:])
        unsettled = sum(sigma >= SETTLED for sigma in schedule.sigmas[: schedule.steps])
        fewest = min(FEWEST[kind] * schedule.sigmas[0], max(unsettled, 1))
        assert sum(asked) >= fewest
        assert sum(asked) <= max(schedule.steps / SAVING[mode], fewest + 1)
        calls.append(sum(asked))
    assert calls[0] >= calls[1]


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("mode", SAVING_MODES)
def test_the_last_steps_that_matter_are_asked(variant, mode):
    schedule = schedule_of(variant)
    unsettled = [sigma for sigma in schedule.sigmas[:-1] if sigma >= SETTLED]
    assert levels(plan(mode, SAMPLING_PRESETS[variant].sampler, schedule, NANO_TOKENS), schedule)[-1] == unsettled[-1]


@pytest.mark.parametrize("mode", SAVING_MODES)
def test_without_fresh_noise_the_skipped_runs_are_equally_long(mode):
    asked = plan(mode, Sampler.UNIPC, schedule_of(Variant.FULL), NANO_TOKENS)
    at = [i for i, ask in enumerate(asked) if ask]
    gaps = {b - a for a, b in itertools.pairwise(at)}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("tokens", [16, 64, 256])
def test_flash_is_asked_at_even_levels_of_the_grids_shift(tokens):
    fine = sampler.schedule(Sampler.FLASH, 200, 2.0)
    found = np.array(levels(plan(Mode.TURBO, Sampler.FLASH, fine, tokens), fine))
    shift = (tokens / 16) ** 0.5
    even = found / (shift - (shift - 1) * found)
    np.testing.assert_allclose(even, np.linspace(even[0], even[-1], len(even)), atol=0.02)


def test_larger_grids_are_asked_earlier():
    schedule = schedule_of(Variant.DEV)
    means = [np.mean(levels(plan(Mode.TURBO, Sampler.FLASH, schedule, tokens), schedule)) for tokens in (16, 64, 576)]
    assert means == sorted(means)
    assert len(set(means)) == 3
    # from 576 tokens, shift 6, on there is nothing to gain: the published model's 4,096 are asked like them
    assert plan(Mode.TURBO, Sampler.FLASH, schedule, 4096) == plan(Mode.TURBO, Sampler.FLASH, schedule, 576)


def test_an_image_to_start_from_takes_its_share_of_the_calls():
    whole = schedule_of(Variant.DEV)
    start = sum(sigma > 0.6 for sigma in whole.sigmas)  # where a refining pass begins
    asked = plan(Mode.TURBO, Sampler.FLASH, tail(whole, start), NANO_TOKENS)
    assert (len(asked), sum(asked)) == (6, 3)


def test_estimates_lie_on_the_line_through_the_last_two():
    start, rise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    sigmas = (1.0, 0.9, 0.7, 0.4, 0.1)
    for slope in (0.0, 0.5, 1.0):
        history = History(sigmas, slope)
        history.note(start + rise * sigmas[0], 0)
        torch.testing.assert_close(history.estimate(1), start + rise * sigmas[0])  # one point makes no line
        history.note(start + rise * sigmas[2], 2)
        assert torch.equal(history.estimate(2), start + rise * sigmas[2])
        for i in (3, 4):
            expected = start + rise * (sigmas[2] + slope * (sigmas[i] - sigmas[2]))
            torch.testing.assert_close(history.estimate(i), expected)


def test_the_velocity_leads_to_the_estimate():
    x, x0 = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    history = History((1.0, 0.5, 0.01), 0.5)
    history.note(x0, 0)
    for i, sigma in enumerate(history.sigmas):
        torch.testing.assert_close(x - sigma * history.velocity(x, i), x0, rtol=1e-5, atol=1e-5)


def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Stands for the model: smooth, and different at every level."""
    return torch.sin(3 * x) * (0.5 + sigma) + 0.1 * x


def run(kind: Sampler, schedule: Schedule, asked: tuple[bool, ...], image: torch.Tensor | None = None):
    """Sample with the plan; with an image the model knows the straight path to it."""
    generator = torch.Generator().manual_seed(7)
    state, history = SamplerState(schedule, generator), History(schedule.sigmas, SLOPE[kind])
    x = torch.randn(1, 4, 8, 8, generator=generator)
    for i, ask in enumerate(asked):
        sigma = schedule.sigmas[i]
        if ask:
            v = velocity(x, sigma) if image is None else (x - image) / sigma
            history.note(x - sigma * v, i)
        else:
            v = history.velocity(x, i)
        x, state = sampler.step(kind, x, v, state, i)
    return x


@pytest.mark.parametrize("kind", Sampler)
@pytest.mark.parametrize("mode", SAVING_MODES)
@pytest.mark.parametrize("steps", [2, 5, 28])
def test_every_mode_finds_the_image_of_a_straight_path(kind, mode, steps):
    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    schedule = sampler.schedule(kind, steps, 3.0)
    found = run(kind, schedule, plan(mode, kind, schedule, NANO_TOKENS), image)
    torch.testing.assert_close(found, image, rtol=1e-4, atol=1e-4)


def test_flash_with_skipped_steps_is_a_shorter_flash_with_the_same_noise():
    schedule = sampler.schedule(Sampler.FLASH, 10, 3.0)
    asked = plan(Mode.BALANCED, Sampler.FLASH, schedule, NANO_TOKENS)
    assert not all(asked)
    generator = torch.Generator().manual_seed(7)
    noises = [torch.randn(1, 4, 8, 8, generator=generator) for _ in asked]
    x0 = torch.zeros(())
    for i in (i for i, ask in enumerate(asked) if ask):
        sigma = schedule.sigmas[i]
        x = (1 - sigma) * x0 + sigma * noises[i]
        x0 = x - sigma * velocity(x, sigma)
    torch.testing.assert_close(run(Sampler.FLASH, schedule, asked), x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Sampler.UNIPC, Sampler.EULER])
@pytest.mark.parametrize("mode", SAVING_MODES)
def test_without_fresh_noise_the_slope_brings_the_image_nearer(monkeypatch, kind, mode):
    schedule = sampler.schedule(kind, 50, 3.0)
    asked = plan(mode, kind, schedule, NANO_TOKENS)
    exact = run(kind, schedule, (True,) * schedule.steps)

    def distance(slope: float) -> float:
        monkeypatch.setitem(SLOPE, kind, slope)
        return float((run(kind, schedule, asked) - exact).norm())

    assert distance(0.5) < 0.8 * distance(0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "mode", "steps", "calls", "least_db"),
    [
        pytest.param(Variant.DEV, Mode.BALANCED, 28, 14, 17, marks=pytest.mark.long),  # Flash redraws: near, not equal
        (Variant.DEV, Mode.TURBO, 28, 8, 15),
        pytest.param(Variant.FULL, Mode.BALANCED, 40, 20, 35, marks=pytest.mark.long),
        (Variant.FULL, Mode.TURBO, 40, 11, 25),
    ],
)
def test_images_stay_near_with_as_many_calls_as_promised(dev, full, monkeypatch, variant, mode, steps, calls, least_db):
    model = {Variant.DEV: dev, Variant.FULL: full}[variant]
    request = ImageRequest("flat style a sailboat in the ocean", Size(256, 256), seed=7, steps=steps)
    exact = generate(model, request).pixels
    made = []
    original = Transformer.velocity
    monkeypatch.setattr(Transformer, "velocity", lambda *given: made.append(1) or original(*given))
    drawn = generate(model, dataclasses.replace(request, mode=mode)).pixels
    assert len(made) == calls
    assert psnr(drawn, exact) > least_db
    # another seed is farther away than the cached image: it is nearly this one, not merely one like it
    other = generate(model, dataclasses.replace(request, seed=8, mode=mode)).pixels
    assert psnr(drawn, exact) > psnr(other, exact) + 1


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((one.astype(float) - other.astype(float)) ** 2) / 255**2))
