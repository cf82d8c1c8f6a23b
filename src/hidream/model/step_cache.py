"""Fewer calls of the transformer for nearly the same picture: which steps ask the model, and what stands for an answer.

    x0 = x − σ·v   what the model, asked at noise level σ, takes the picture to be; [B, C, h, w] as x and v, float32

From step to step x0 changes less than anything else that could be kept: the velocity and the hidden states carry the
noise of their own step, which Flash draws afresh each time. So a skipped step estimates x0 from those of earlier steps
(`History`) and gives the sampler the velocity that leads there. The sampler takes all its steps and draws all its
noise as ever, which is why the picture is nearly the one of the same seed, not another of the same prompt.

`plan` settles before the first step which of them ask. It is the same for all requests of a shape, whatever they draw,
so that a scheduler knows what is left to compute, and no rounding decides.

Knows neither the transformer nor the loop; `cached` is the whole of it for `pipeline.denoise`, an engine takes `plan`
and `History` and keeps one history per request and pass. How the numbers were found: docs/LOG.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hidream.model.sampler import Schedule
from hidream.types import Mode, Sampler

Velocity = Callable[[Tensor, int], Tensor]
"""Velocity of the latent x at step i."""


SAVING: Mapping[Mode, float] = {Mode.EXACT: 1, Mode.BALANCED: 2, Mode.TURBO: 3.5}
"""How many times fewer calls each mode makes, at least."""

FEWEST = 4
"""Calls that a picture from noise is given in any mode; one that starts at a lower noise level gets its share of them.

With fewer, what nano draws for one prompt begins to look alike from seed to seed.
"""

SETTLED = 0.05
"""Noise level below which the model is not asked again: nothing changes there that is seen.

Officially Dev forgets to denoise its last step, at 0.035 (`sampler.py`).
"""

REDRAWN_TOKENS = 64
"""Image tokens of the grid for which evenly spaced noise levels were found best with Flash: nano's, 8 × 8."""

SLOPE: Mapping[Sampler, float] = {Sampler.FLASH: 0.0, Sampler.UNIPC: 0.5, Sampler.EULER: 0.5}
"""Share of the last change of x0 per noise level that goes on through skipped steps.

With Flash the changes are those of its noise: to continue them is to draw noise that is not there. Without fresh noise
x0 goes smoothly, and half the slope was better than none, and than the whole.
"""


def plan(mode: Mode, sampler: Sampler, schedule: Schedule, tokens: int) -> tuple[bool, ...]:
    """Settle which steps of a pass ask the model; the first one always does.

    `tokens` is the size of the pass's grid, `schedule` all its steps; a schedule that begins below noise level 1, as
    one that starts from a picture does, is spread like any other.
    """
    levels = schedule.sigmas[: schedule.steps]
    if mode is Mode.EXACT:
        return (True,) * schedule.steps
    last = max((i for i, level in enumerate(levels) if level >= SETTLED), default=0)
    wanted = max(math.ceil(FEWEST * levels[0]), int(schedule.steps / SAVING[mode]), 1)
    asked = _spread(_positions(sampler, levels[: last + 1], tokens), min(wanted, last + 1))
    return tuple(i in asked for i in range(schedule.steps))


def cached(velocity: Velocity, schedule: Schedule, asked: Sequence[bool], sampler: Sampler) -> Velocity:
    """Wrap a velocity for one run of a sampler, so that only the steps that are `asked` call it."""
    if all(asked):
        return velocity
    history = History(schedule.sigmas, SLOPE[sampler])

    def answer(x: Tensor, i: int) -> Tensor:
        if not asked[i]:
            return history.velocity(x, i)
        v = velocity(x, i)
        history.note(x - schedule.sigmas[i] * v, i)
        return v

    return answer


@dataclass(slots=True)
class History:
    """What one run of a sampler remembers of the pictures that the model was asked for."""

    sigmas: Sequence[float]
    slope: float
    _last: tuple[int, Tensor] | None = field(default=None, init=False)
    _before: tuple[int, Tensor] | None = field(default=None, init=False)

    def note(self, x0: Tensor, i: int) -> None:
        """Remember what the model took the picture to be at step `i`."""
        self._before, self._last = (self._last if self.slope else None), (i, x0)

    def estimate(self, i: int) -> Tensor:
        """Estimate x0 at a later step: the last one, moved along the line from the one before it."""
        assert self._last is not None, "a step is skipped before any has asked the model"
        j, x0 = self._last
        if self._before is None:
            return x0
        k, earlier = self._before
        ahead = (self.sigmas[i] - self.sigmas[j]) / (self.sigmas[j] - self.sigmas[k])
        return x0 + (self.slope * ahead) * (x0 - earlier)

    def velocity(self, x: Tensor, i: int) -> Tensor:
        """Return the velocity at x that leads to the estimate."""
        return (x - self.estimate(i)) / self.sigmas[i]


def _positions(sampler: Sampler, levels: Sequence[float], tokens: int) -> list[float]:
    """Where each step lies on the line on which those that ask are spread evenly.

    Without fresh noise that is the schedule's own spacing. Flash redraws the noise at every step, so that all which a
    step hands on is its x0, with the weight 1 − σ: near σ = 1 a step decides next to nothing, and the noise levels
    themselves are spaced evenly. The more tokens see the same thing, the nearer to 1 it is decided: levels move by the
    shift that keeps its signal-to-noise ratio, the root of the ratio of tokens (Esser et al., arXiv 2403.03206, eq.
    23). So the published model, with 4,096, is spread by shift 8, near to its own.
    """
    if sampler is not Sampler.FLASH:
        return [float(i) for i in range(len(levels))]
    shift = math.sqrt(tokens / REDRAWN_TOKENS)
    return [-level / (shift - (shift - 1) * level) for level in levels]


def _spread(positions: Sequence[float], count: int) -> set[int]:
    """Choose `count` of increasing positions, the first among them, as evenly as they lie; with two or more the last."""
    first, last = positions[0], positions[-1]
    chosen = [0]
    for n in range(1, count):
        target = first + (last - first) * n / (count - 1)
        # each later choice needs a position of its own
        candidates = range(chosen[-1] + 1, len(positions) - (count - 1 - n))
        chosen.append(min(candidates, key=lambda i: abs(positions[i] - target)))
    return set(chosen)
