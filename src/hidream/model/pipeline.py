"""The readable specification: `generate` is one prompt to one picture.

Everything that decides the pixels is in the request; every random number comes from its seed, drawn on the CPU so that
a seed means the same noise on any device. Knows no queue, no HTTP and no files but those that a request brings along.

A picture is drawn in one pass, or in two: small, then enlarged and refined. A pass starts from noise alone, or from a
latent that is noised to the level from which its steps lead down.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hidream.model import sampler
from hidream.model.canvas import Canvas, cells, open_canvas
from hidream.model.config import Recipe, recipe_of
from hidream.model.loading import Model
from hidream.model.packed import Conditioning, Packed
from hidream.model.sampler import Schedule
from hidream.model.shape import Grid, fit, render_grid, to_pixels
from hidream.types import ImageRequest, Render, Size, Timings

REFINE_ABOVE = 1.2
"""Times the best area from which a size is refined by default; up to there enlarging costs nothing that is seen."""
REFINE_FROM = 0.6
"""Noise level at which the second pass begins: the layout of the first stays, details are drawn anew."""

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all) after each step; whatever it raises ends the picture."""
Velocity = Callable[[Tensor, int], Tensor]
"""Velocity of the latent x at step i."""
Keep = Callable[[Tensor, float], Tensor]
"""Brings the latent x at noise level σ back to what must not change."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture: uint8 pixels [height, width, 3], where the time went, and what its user should know."""

    pixels: np.ndarray
    timings: Timings
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pass:
    """One run of the sampler."""

    grid: Grid
    schedule: Schedule


@torch.inference_mode()
def generate(model: Model, request: ImageRequest, on_step: OnStep | None = None) -> Picture:
    """Draw `request.prompt` at exactly `request.size`.

    The figure of the reference's pipeline (diffusers 0.42.1, pipeline_hidream_image.py) with its two promises kept:
    the size that was asked, and one picture for one seed. Raises InvalidInput on files and LoRAs that cannot be used,
    and whatever `on_step` raises.
    """
    recipe = resolve(model, request)
    canvas, passes, changes = open_canvas(request), plan_passes(model, request, recipe), model.changes(request.loras)
    tick = _counter(on_step, sum(each.schedule.steps for each in passes))
    started = _now(model.device)

    prompts = [request.negative_prompt, request.prompt] if recipe.guidance > 1 else [request.prompt]
    text = model.text.embed(prompts)
    embedded = _now(model.device)

    generator, x0 = sampler.generator_of(request.seed), None
    for each in passes:
        conditioning = model.transformer.condition(
            *text.embeds, each.grid, padded=request.render is Render.REFERENCE, changes=changes
        )
        velocity = velocity_of(model, recipe.guidance, conditioning, each.schedule)
        noise = initial_noise(model, each.grid, generator)
        given = None if canvas is None else lay(model, canvas, each.grid)
        start = given if x0 is None else enlarge(x0, noise)
        keep = _keep_nothing if canvas is None or given is None else keeping(model, canvas, given, noise)
        x = noised(start, noise, each.schedule)
        with model.phases.denoising():
            x0 = denoise(recipe, each.schedule, velocity, x, generator, keep, tick)
    assert x0 is not None, "there is at least one pass"
    denoised = _now(model.device)

    with model.phases.autoencoding():
        drawn = fit(model.vae.decode(x0)[0].float(), request.size)
    pixels = to_pixels(drawn if canvas is None else canvas.at(request.size).keep(drawn)).cpu().numpy()
    done = _now(model.device)
    return Picture(pixels, Timings(embedded - started, denoised - embedded, done - denoised), text.warnings)


def resolve(model: Model, request: ImageRequest) -> Recipe:
    """Return the variant's recipe with what the request says otherwise."""
    recipe = recipe_of(model.variant, request.conformance, request.sampler, model.transformer.config.max_tokens)
    asked: dict[str, Any] = {"steps": request.steps, "guidance": request.guidance, "shift": request.shift}
    return dataclasses.replace(recipe, **{name: value for name, value in asked.items() if value is not None})


def plan_passes(model: Model, request: ImageRequest, recipe: Recipe) -> list[Pass]:
    """Settle grids and noise levels: one pass, or a second one that refines on the grid of the size itself."""

    def grid(render: Render) -> Grid:
        return render_grid(request.size, render, model.token_px, model.best_tokens, model.transformer.config.max_tokens)

    whole = sampler.schedule(recipe.sampler, recipe.steps, recipe.shift, request.conformance)
    share = 1.0 if request.image is None else request.strength
    first = Pass(grid(request.render), _tail(whole, whole.steps - max(1, int(whole.steps * share))))
    native = grid(Render.NATIVE)
    larger = native.rows * native.columns / (first.grid.rows * first.grid.columns)
    refines = request.render is Render.REFINE and larger > 1
    refines |= request.render is Render.BEST and larger > REFINE_ABOVE and model.refines
    if not refines:
        return [first]
    below = sum(sigma > REFINE_FROM for sigma in whole.sigmas[:-1])
    return [first, Pass(native, _tail(whole, min(below, whole.steps - 1)))]


def velocity_of(model: Model, guidance: float, conditioning: Conditioning, schedule: Schedule) -> Velocity:
    """Make the function that a sampler asks; two prompts in the conditioning are a negative one and the prompt."""
    modulations = model.transformer.modulations(schedule.timesteps, conditioning)
    batch, packed = conditioning.txt.shape[0], Packed.of([conditioning])

    def velocity(x: Tensor, i: int) -> Tensor:
        latent = x.to(model.dtype).expand(batch, -1, -1, -1)
        answer = model.transformer.velocity([latent], [modulations[i]], packed)[0].float()
        if batch == 1:
            return answer
        negative, positive = answer.chunk(2)
        return negative + guidance * (positive - negative)

    return velocity


def denoise(
    recipe: Recipe,
    schedule: Schedule,
    velocity: Velocity,
    x: Tensor,
    generator: torch.Generator,
    keep: Keep,
    tick: Callable[[], None],
) -> Tensor:
    """Lead the latent x [1, C, h, w] from the schedule's first noise level to its last."""
    state = sampler.SamplerState(schedule, generator)
    for i in range(schedule.steps):
        x, state = sampler.step(recipe.sampler, x, velocity(x, i), state, i)
        x = keep(x, schedule.sigmas[i + 1])
        tick()
    return x


def initial_noise(model: Model, grid: Grid, generator: torch.Generator) -> Tensor:
    """Draw the noise a pass starts from, [1, C, h, w], float32."""
    config = model.transformer.config
    shape = (1, config.in_channels, grid.rows * config.patch_size, grid.columns * config.patch_size)
    return torch.randn(shape, generator=generator).to(model.device)


def noised(x0: Tensor | None, noise: Tensor, schedule: Schedule) -> Tensor:
    """Bring x0 to the schedule's first level; without x0 that is the noise itself."""
    sigma = schedule.sigmas[0]
    return noise if x0 is None else (1 - sigma) * x0 + sigma * noise


def enlarge(x0: Tensor, like: Tensor) -> Tensor:
    """Bring a latent to another's grid, smoothly."""
    return F.interpolate(x0, like.shape[-2:], mode="bicubic")


def lay(model: Model, canvas: Canvas, grid: Grid) -> Tensor:
    """Encode the canvas for a grid: its latent [1, C, h, w], float32."""
    size = Size(width=grid.columns * model.token_px, height=grid.rows * model.token_px)
    with model.phases.autoencoding():
        return model.vae.encode(canvas.at(size).picture[None].to(model.device)).float()


def keeping(model: Model, canvas: Canvas, given: Tensor, noise: Tensor) -> Keep:
    """Make the function that sets what lies outside the canvas's mask back to `given`, at any noise level."""
    rows, columns = given.shape[-2:]
    fitting = canvas.at(Size(width=columns * model.vae.factor, height=rows * model.vae.factor)).mask
    if fitting is None:
        return _keep_nothing
    mask = cells(fitting, rows, columns).to(given.device)

    def keep(x: Tensor, sigma: float) -> Tensor:
        return torch.where(mask > 0, x, (1 - sigma) * given + sigma * noise)

    return keep


def _keep_nothing(x: Tensor, sigma: float) -> Tensor:
    return x


def _tail(schedule: Schedule, start: int) -> Schedule:
    """What is left of a schedule from step `start` on."""
    return Schedule(sigmas=schedule.sigmas[start:], timesteps=schedule.timesteps[start:])


def _counter(on_step: OnStep | None, total: int) -> Callable[[], None]:
    """Make the function that is called after each step."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if on_step:
            on_step(done, total)

    return tick


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
