"""The step cache: fewer model evaluations for nearly the same image.

    x0 = x − σ·v   the model's estimate of the final latent at noise level σ; [B, C, h, w] as x and v, float32

A step without an evaluation extrapolates x0 from earlier steps (`History`) and gives the sampler the velocity that
leads there. The sampler takes all its steps and draws all its noise as usual. So the image is nearly the one of the
same seed, not another one of the same prompt. With Flash this amounts to a shorter schedule with the noise of the
longer one, for which the model was trained.

`plan` settles before the first step which of them evaluate the model. It is the same for all images of a shape,
whatever they show, so that a scheduler knows what is left to compute, and no rounding decides.

Knows neither the transformer nor the loop. The owner of a loop keeps one history per request and pass. How the numbers
were found, and what was worse: docs/LOG.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hidream.model.sampling.sampler import Schedule
from hidream.types import Mode, Sampler

SAVING: Mapping[Mode, float] = {Mode.EXACT: 1, Mode.BALANCED: 2, Mode.TURBO: 3.5}
"""By which factor each mode has fewer evaluations, at least, as far as `FEWEST` allows."""

FEWEST: Mapping[Sampler, int] = {Sampler.FLASH: 4, Sampler.UNIPC: 10, Sampler.EULER: 10}
"""Evaluations of an image from noise in any mode; one that starts at a lower noise level gets its share of them.

With Flash and 4, nano generates what the prompt says, with a quarter less of the finest detail; with 2, its objects are
blots. Without fresh noise nothing mends what too few calls miss: of 12 of Full's images the worst was at 34 dB (PSNR,
against all 50 calls) with 14 calls, at 19 with 10 and at 17 with 8.
"""

SETTLED = 0.05
"""Noise level below which the model is not evaluated again: nothing visible changes there.

Officially Dev is not denoised in its last step, at 0.035 (`sampler.py`).
"""

EVEN_SHIFT_TOKENS = 16
"""Image tokens of a grid for which evenly spaced noise levels (shift 1) are the ones to evaluate at with Flash.

Measured at nano's 64, where shift 2 was best (of 1, 2, 4, 8 and Dev's own, 36), and carried on by `_positions`.
"""

LARGEST_SHIFT = 6.0
"""Where carrying on ends: Dev's shift, with which the published model is sampled elsewhere, at 4,096 tokens.

ComfyUI applies it once (`ModelSamplingSD3`), the reference twice, which makes 36 (`sampler.schedule`).
"""

SLOPE: Mapping[Sampler, float] = {Sampler.FLASH: 0.0, Sampler.UNIPC: 0.5, Sampler.EULER: 0.5}
"""Share of x0's last change per noise level by which it is extrapolated.

With Flash the changes are those of its noise: to continue them is to draw noise that is not there. Without fresh noise
x0 goes smoothly, and half of the slope was better than none, and than the whole.
"""


def plan(mode: Mode, sampler: Sampler, schedule: Schedule, tokens: int) -> tuple[bool, ...]:
    """Settle which steps of a pass evaluate the model; the first one always does.

    `schedule` has all steps of the pass, `tokens` the image tokens of its grid. A schedule that begins below noise
    level 1, as one that starts from an image does, is spread like any other.
    """
    if mode is Mode.EXACT:
        return (True,) * schedule.steps
    levels = schedule.sigmas[: schedule.steps]
    unsettled = max(sum(level >= SETTLED for level in levels), 1)
    calls = max(math.ceil(FEWEST[sampler] * levels[0]), int(schedule.steps / SAVING[mode]))
    chosen = _evenly(_positions(sampler, levels[:unsettled], tokens), min(calls, unsettled))
    return tuple(i in chosen for i in range(schedule.steps))


@dataclass(slots=True)
class History:
    """The x0 of earlier evaluations in one run of a sampler; `sigmas` of its schedule, and its sampler's `SLOPE`."""

    sigmas: Sequence[float]
    slope: float
    _last: tuple[int, Tensor] | None = field(default=None, init=False)
    _before: tuple[int, Tensor] | None = field(default=None, init=False)

    def note(self, x0: Tensor, i: int) -> None:
        """Remember the model's estimate at step `i`."""
        self._before, self._last = (self._last if self.slope else None), (i, x0)

    def estimate(self, i: int) -> Tensor:
        """Estimate x0 at step `i`, the last one noted or a later one: along the line through the last two."""
        assert self._last is not None, "the first step of every plan evaluates the model"
        j, x0 = self._last
        if self._before is None or i == j:
            return x0
        k, earlier = self._before
        ahead = (self.sigmas[i] - self.sigmas[j]) / (self.sigmas[j] - self.sigmas[k])
        return x0 + (self.slope * ahead) * (x0 - earlier)

    def velocity(self, x: Tensor, i: int) -> Tensor:
        """Return the velocity at x that leads to the estimate."""
        return (x - self.estimate(i)) / self.sigmas[i]


def _positions(sampler: Sampler, levels: Sequence[float], tokens: int) -> list[float]:
    """Return where each step lies on the line on which the evaluated ones are spread evenly; increasing.

    Without fresh noise that is the schedule's own spacing. Flash redraws the noise at every step, so that all which a
    step hands on is its x0, with the weight 1 − σ: near σ = 1 a step decides next to nothing, and half of Dev's steps
    are there. The more tokens see the same thing, the nearer to 1 it is decided: levels move by the shift that keeps
    its signal-to-noise ratio, the root of the ratio of tokens (Esser et al., arXiv 2403.03206, eq. 23), up to a bound.
    That the published model, too, is drawn well so has not been measured.
    """
    if sampler is not Sampler.FLASH:
        return [float(i) for i in range(len(levels))]
    shift = min(math.sqrt(tokens / EVEN_SHIFT_TOKENS), LARGEST_SHIFT)
    return [-level / (shift - (shift - 1) * level) for level in levels]  # the inverse of `sampler.shifted`


def _evenly(positions: Sequence[float], count: int) -> set[int]:
    """Choose `count` of increasing positions as evenly as they lie: the first, and with two or more the last."""
    first, last = positions[0], positions[-1]
    chosen = [0]
    for n in range(1, count):
        target = first + (last - first) * n / (count - 1)
        # each later choice needs a position of its own
        candidates = range(chosen[-1] + 1, len(positions) - (count - 1 - n))
        chosen.append(min(candidates, key=lambda i: abs(positions[i] - target)))
    return set(chosen)
