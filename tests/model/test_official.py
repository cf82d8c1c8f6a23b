"""Ours against the official repository, HiDream-ai/HiDream-I1 @9b42dd6: transformer, schedules and whole images.

What it computes on a tiny transformer was recorded by `record_official.py`. Where the repository itself lies beside
the checkout, or OFFICIAL_REPOSITORY names its folder, it is asked again.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import record_official
import tiny
import torch
from record_official import LOOPS, NOISE_SEED, RUNS, Loop, Run, run_start, velocity
from safetensors.torch import load_file
from torch import Tensor

from hidream.errors import InvalidInput
from hidream.model.network.config import PUBLISHED_TOKENS, official_shift, sampling_preset
from hidream.model.network.ragged_batch import Conditioning, RaggedBatch
from hidream.model.network.transformer import Transformer
from hidream.model.sampling import sampler
from hidream.types import SAMPLING_PRESETS, Conformance, Sampler, Variant

OFFICIAL = Conformance.OFFICIAL
ONE_CALL = 1e-5  # of the output's largest value, float32
WHOLE_LOOP = 1e-4
SAMPLER = 1e-5
SQUARE = [loop for loop in LOOPS if loop.height == loop.width]
REPOSITORY = Path(os.environ.get("OFFICIAL_REPOSITORY", Path(__file__).parents[3] / "HiDream-I1"))


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(record_official.RECORDING)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny.ours(tiny.reference())


def conditioned(model: Transformer, recorded: dict[str, Tensor], loop: Loop) -> Conditioning:
    """Both prompts if the variant is guided, else the positive one."""
    first = 0 if SAMPLING_PRESETS[loop.variant].guidance > 1 else 1
    t5, llama, pooled = recorded["t5"][first:], recorded["llama"][:, first:], recorded["pooled"][first:]
    return model.condition(t5, llama, pooled, (loop.height // 2, loop.width // 2), padded=True)


def draw(model: Transformer, recorded: dict[str, Tensor], loop: Loop, conformance: Conformance) -> tuple[Tensor, int]:
    """Last latent, and how often the model was asked: the loop of `pipeline.generate`."""
    preset = sampling_preset(loop.variant, conformance, max_tokens=model.config.max_tokens)
    schedule = sampler.schedule(preset.sampler, preset.steps, preset.shift, conformance)
    state = sampler.SamplerState(schedule, sampler.generator_of(NOISE_SEED))
    c = conditioned(model, recorded, loop)
    x = recorded[loop.shape]
    for i, modulation in enumerate(model.modulations(schedule.timesteps, c)):
        latent = x.expand(c.pooled.shape[0], -1, -1, -1)
        velocity = model.velocity([latent], [modulation], RaggedBatch.of([c]))[0]
        if preset.guidance > 1:
            negative, positive = velocity.chunk(2)
            velocity = negative + preset.guidance * (positive - negative)
        x, state = sampler.step(preset.sampler, x, velocity, state, i)
    return x, schedule.steps


def follow(run: Run, schedule: sampler.Schedule, x: Tensor) -> Tensor:
    """Take all steps of a schedule with `velocity` in the model's place."""
    state = sampler.SamplerState(schedule, sampler.generator_of(NOISE_SEED))
    for i, time in enumerate(schedule.timesteps):
        x, state = sampler.step(run.sampler, x, velocity(x, time), state, i)
    return x


def test_the_seeds_mean_what_they_meant_when_it_was_recorded(recorded):
    """If this fails, torch draws other numbers than the torch that recorded: record again."""
    for name, value in record_official.make_inputs().items():
        torch.testing.assert_close(value, recorded[name], msg=name)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_one_call_equals_the_official_transformer(model, recorded, loop):
    c = conditioned(model, recorded, loop)
    latent = recorded[loop.shape].expand(c.pooled.shape[0], -1, -1, -1)
    time = recorded[f"{loop}.timesteps"][0].float().expand(latent.shape[0])
    assert tiny.relative(model.velocity_at(latent, time, c), -recorded[f"{loop}.first_call"]) <= ONE_CALL


@pytest.mark.slow
@pytest.mark.parametrize(
    "loop", [pytest.param(p, marks=pytest.mark.long) if p in SQUARE else p for p in LOOPS], ids=str
)
def test_image_equals_the_official_pipeline(model, recorded, loop):
    """With one call less where the official last call is thrown away."""
    ours, calls = draw(model, recorded, loop, OFFICIAL)
    assert tiny.relative(ours, recorded[f"{loop}.latent"]) <= WHOLE_LOOP
    wasted = 1 if SAMPLING_PRESETS[loop.variant].sampler is Sampler.FLASH else 0
    assert calls == int(recorded[f"{loop}.calls"]) - wasted


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_sampler_equals_the_official_scheduler(recorded, run):
    shift = run.shift or official_shift(PUBLISHED_TOKENS)
    schedule = sampler.schedule(run.sampler, run.steps, shift, OFFICIAL)
    flash = run.sampler is Sampler.FLASH
    sigmas, times = recorded[f"{run}.sigmas"], recorded[f"{run}.timesteps"]
    if flash:  # whose last step, to 0, returns what it was given
        sigmas, times = sigmas[:-1], times[:-1]
    torch.testing.assert_close(torch.tensor(schedule.sigmas), sigmas, rtol=0, atol=1e-7)
    torch.testing.assert_close(torch.tensor(schedule.timesteps), times, rtol=0, atol=1e-4 if flash else 0)

    end = follow(run, schedule, run_start(recorded))
    assert tiny.relative(end, recorded[f"{run}.x"]) <= SAMPLER


@pytest.mark.parametrize("run", [RUNS[1], RUNS[4]], ids=str)
def test_conformance_matters(recorded, run):
    """Diffusers' Fast and Full end elsewhere, so the tests above do test it."""
    shift = SAMPLING_PRESETS[Variant.FAST if run.sampler is Sampler.FLASH else Variant.FULL].shift
    end = follow(run, sampler.schedule(run.sampler, run.steps, shift), run_start(recorded))
    assert tiny.relative(end, recorded[f"{run}.x"]) > 10 * SAMPLER


def test_the_official_preset_is_diffusers_but_for_the_shift_of_unipc():
    for variant in Variant:
        assert sampling_preset(variant) == SAMPLING_PRESETS[variant]
        official = sampling_preset(variant, OFFICIAL)
        if variant is Variant.FULL:
            assert official.shift == pytest.approx(3.158, abs=1e-3)
            official = dataclasses.replace(official, shift=SAMPLING_PRESETS[variant].shift)
        assert official == SAMPLING_PRESETS[variant]
    assert sampling_preset(Variant.FULL, OFFICIAL, Sampler.FLASH).shift == SAMPLING_PRESETS[Variant.FULL].shift
    assert sampling_preset(Variant.DEV, sampler=Sampler.EULER) == dataclasses.replace(
        SAMPLING_PRESETS[Variant.DEV], sampler=Sampler.EULER
    )


def test_a_single_official_flash_step_is_refused():
    """The official repository would return the noise."""
    with pytest.raises(InvalidInput, match=r"steps is 1 .*accepted: 2 or more"):
        sampler.schedule(Sampler.FLASH, 1, 6.0, OFFICIAL)


@pytest.mark.long
@pytest.mark.skipif(not REPOSITORY.exists(), reason="the official repository is not beside this one")
def test_the_recording_is_what_the_repository_still_answers(recorded):
    answered = record_official.record(record_official.load(REPOSITORY))
    assert answered.keys() == recorded.keys()
    for name, value in answered.items():
        torch.testing.assert_close(value, recorded[name], rtol=1e-5, atol=1e-5, msg=name)
