"""The samplers of HiDream-I1 as pure functions: `schedule` makes the noise levels, `step` takes one step.

They do not own the loop. The noise of a step comes from the generator in the state, which belongs to one request.
Latents are kept in float32 between the steps.

    σ  noise level, 1 (noise) to 0 (image);  x_σ = (1 − σ)·x0 + σ·noise
    v  velocity, the negated output of the transformer;  x0 = x − σ·v

Sources: Flash is diffusers' FlowMatchLCMScheduler and the official `flash_flow_match.py`. UniPC is Zhao et al., arXiv
2302.04867, B(h) = expm1(−h) ("bh2"), order 2, as diffusers' UniPCMultistepScheduler with flow sigmas and the official
`fm_solvers_unipc.py`. Euler is diffusers' FlowMatchEulerDiscreteScheduler, on Flash's noise levels. The steps are the
same in both references; `Conformance` changes only the schedule:

- Flash: the official code does not denoise in its last step, so the image still has the noise of the last level (3.5 %
  with Dev's settings). It discards the velocity of that step, so the model is not evaluated here: one call less.
- UniPC: in the official code, the even spacing runs from just below 1 to 0; in diffusers from 1 to 0.001, with the
  first level lowered.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hidream.errors import InvalidInput
from hidream.model.network.config import TIMESTEPS
from hidream.types import Conformance, Sampler

OFFICIAL_SPACING_SHIFT = 3.0
"""Shift of the level from which UniPC's spacing officially starts (inference.py, line 28: Full's own shift)."""

UNIPC_EPS = 1e-6
"""Kept between the first noise level and 1, where UniPC's logarithm ends (diffusers, set_timesteps)."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The noise levels of one image: `sigmas` has one entry more than there are steps, `timesteps` one for each.

    The last level is 0, except that of the official Flash.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    @property
    def steps(self) -> int:
        """How often the model is called."""
        return len(self.timesteps)


@dataclass(slots=True)
class SamplerState:
    """What one request carries from step to step."""

    schedule: Schedule
    generator: torch.Generator
    x0_last: Tensor | None = None
    x0_before: Tensor | None = None
    x_last: Tensor | None = None
    order_last: int = field(default=0)


def schedule(sampler: Sampler, steps: int, shift: float, conformance: Conformance = Conformance.DIFFUSERS) -> Schedule:
    """Noise levels and model times of `steps` steps; the official Flash evaluates the model one time less.

    Raises InvalidInput when nothing would be left of it.
    """
    official = conformance is Conformance.OFFICIAL
    if sampler is Sampler.UNIPC:
        return _unipc_schedule(steps, shift, official)
    whole = _flash_schedule(steps, shift)
    return _without_last_step(whole) if official and sampler is Sampler.FLASH else whole


def step(sampler: Sampler, x: Tensor, velocity: Tensor, state: SamplerState, i: int) -> tuple[Tensor, SamplerState]:
    """Take step `i`: x at sigmas[i] and its velocity to x at sigmas[i + 1]; shapes are equal, float32."""
    return STEPS[sampler](x, velocity, state, i)


def shifted(sigma: np.ndarray, shift: float) -> np.ndarray:
    """Move noise levels towards 1: s·σ / (1 + (s − 1)·σ)."""
    return np.asarray(shift * sigma / (1 + (shift - 1) * sigma))


def generator_of(seed: int) -> torch.Generator:
    """Return a CPU generator for a seed of any size.

    Torch's reads only the lowest 32 bits of a seed; larger seeds are hashed to 32 bits first, so that they do not
    repeat the images of the small ones. Below 2³² it is `torch.Generator().manual_seed(seed)`, as diffusers uses it.
    """
    if seed >= 2**32:
        seed = int.from_bytes(hashlib.sha256(seed.to_bytes(8, "big")).digest()[:4], "big")
    return torch.Generator().manual_seed(seed)


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw normal noise in x's shape on the generator's device, so that a seed means the same on any device."""
    return torch.randn(x.shape, generator=generator, device=generator.device, dtype=torch.float32).to(x.device)


def _flash_schedule(steps: int, shift: float) -> Schedule:
    """Evenly spaced between the shifted ends, then shifted once more, as the reference does it."""
    low = float(np.float32(shifted(np.array(1 / TIMESTEPS, dtype=np.float32), shift)))
    sigmas = shifted(np.linspace(TIMESTEPS, low * TIMESTEPS, steps) / TIMESTEPS, shift).astype(np.float32)
    return Schedule(sigmas=(*sigmas.tolist(), 0.0), timesteps=tuple((sigmas * np.float32(TIMESTEPS)).tolist()))


def _without_last_step(whole: Schedule) -> Schedule:
    """End at the last level above 0, where the official Flash returns x as it is."""
    if whole.steps < 2:
        raise InvalidInput(
            f"steps is {whole.steps} with sampler flash and conformance official, which never denoises in the last "
            "step; accepted: 2 or more"
        )
    return Schedule(sigmas=whole.sigmas[:-1], timesteps=whole.timesteps[:-1])


def flash_step(x: Tensor, velocity: Tensor, state: SamplerState, i: int) -> tuple[Tensor, SamplerState]:
    """Predict the image, then noise it afresh to the next level: x' = (1 − σ')·x0 + σ'·ε."""
    sigma, sigma_next = state.schedule.sigmas[i], state.schedule.sigmas[i + 1]
    x0 = x - sigma * velocity
    if sigma_next == 0.0:
        return x0, state
    return (1 - sigma_next) * x0 + sigma_next * noise_like(x, state.generator), state


def euler_step(x: Tensor, velocity: Tensor, state: SamplerState, i: int) -> tuple[Tensor, SamplerState]:
    """Follow the velocity to the next level: x' = x + (σ' − σ)·v."""
    sigmas = state.schedule.sigmas
    return x + (sigmas[i + 1] - sigmas[i]) * velocity, state


def _unipc_schedule(steps: int, shift: float, official: bool) -> Schedule:
    if official:
        first = float(shifted(np.array(1 - 1 / TIMESTEPS, dtype=np.float32), OFFICIAL_SPACING_SHIFT))
        sigmas = shifted(np.linspace(first, 0, steps + 1)[:-1], shift)
    else:
        sigmas = shifted(np.linspace(1, 1 / TIMESTEPS, steps + 1)[:-1], shift)
        sigmas[0] = min(sigmas[0], 1 - UNIPC_EPS)
    # the references truncate the model's times to whole numbers, but not the noise levels
    timesteps = tuple(float(int(sigma * TIMESTEPS)) for sigma in sigmas)
    return Schedule(sigmas=(*sigmas.astype(np.float32).tolist(), 0.0), timesteps=timesteps)


def unipc_step(x: Tensor, velocity: Tensor, state: SamplerState, i: int) -> tuple[Tensor, SamplerState]:
    """Correct x with the model's new answer (UniC), then predict the next x (UniP)."""
    sigmas = state.schedule.sigmas
    x0 = x - sigmas[i] * velocity
    if i > 0:
        x = _unic(x0, state, i)
    order = min(2, i + 1, state.schedule.steps - i)
    x_next = _unip(x, x0, state, i, order)
    state.x0_before, state.x0_last, state.x_last, state.order_last = state.x0_last, x0, x, order
    return x_next, state


def _unip(x: Tensor, x0: Tensor, state: SamplerState, i: int, order: int) -> Tensor:
    """UniP-`order` from sigmas[i] to sigmas[i + 1]; the last step, to 0, is x0 itself."""
    sigmas = state.schedule.sigmas
    if sigmas[i + 1] == 0.0:
        return x0
    h = _lambda(sigmas[i + 1]) - _lambda(sigmas[i])
    b_h, alpha = math.expm1(-h), 1 - sigmas[i + 1]
    x_next = (sigmas[i + 1] / sigmas[i]) * x - (alpha * b_h) * x0
    if order == 2 and state.x0_last is not None:
        ratio = (_lambda(sigmas[i - 1]) - _lambda(sigmas[i])) / h
        x_next = x_next - (0.5 * alpha * b_h / ratio) * (state.x0_last - x0)
    return x_next


def _unic(x0: Tensor, state: SamplerState, i: int) -> Tensor:
    """Redo the last predictor step, sigmas[i - 1] to sigmas[i], now that the model has spoken at its end."""
    assert state.x_last is not None, "the corrector runs from the second step on"
    assert state.x0_last is not None, "the corrector runs from the second step on"
    sigmas = state.schedule.sigmas
    h = _lambda(sigmas[i]) - _lambda(sigmas[i - 1])
    b_h, alpha = math.expm1(-h), 1 - sigmas[i]
    x = (sigmas[i] / sigmas[i - 1]) * state.x_last - (alpha * b_h) * state.x0_last
    if state.order_last == 1:
        return x - (0.5 * alpha * b_h) * (x0 - state.x0_last)
    assert state.x0_before is not None, "order 2 has two answers behind it"
    ratio = (_lambda(sigmas[i - 2]) - _lambda(sigmas[i - 1])) / h
    rho_before, rho_now = _unic_rhos(h, ratio)
    residual = rho_before / ratio * (state.x0_before - state.x0_last) + rho_now * (x0 - state.x0_last)
    return x - (alpha * b_h) * residual


def _unic_rhos(h: float, ratio: float) -> tuple[float, float]:
    """Solve [[1, 1], [ratio, 1]]·ρ = b, the corrector's conditions of order 2 (paper, eq. 12)."""
    b_h = math.expm1(-h)
    phi_2 = b_h / -h - 1
    phi_3 = phi_2 / -h - 0.5
    b_1, b_2 = phi_2 / b_h, 2 * phi_3 / b_h
    rho_before = (b_2 - b_1) / (ratio - 1)
    return rho_before, b_1 - rho_before


def _lambda(sigma: float) -> float:
    """Half the log signal-to-noise ratio, log(1 − σ) − log σ."""
    return math.log(1 - sigma) - math.log(sigma)


Step = Callable[[Tensor, Tensor, SamplerState, int], tuple[Tensor, SamplerState]]

STEPS: Mapping[Sampler, Step] = {
    Sampler.FLASH: flash_step,
    Sampler.UNIPC: unipc_step,
    Sampler.EULER: euler_step,
}
"""How each sampler takes a step."""
