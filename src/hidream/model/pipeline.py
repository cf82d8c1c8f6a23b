"""The readable specification: `generate` is one prompt to one picture.

Everything that decides the pixels is in the request; every random number comes from its seed, drawn on the CPU so that
a seed means the same noise on any device. Knows no queue, no HTTP and no files but those that a request brings along.

A picture is drawn in one pass, or in two: small, then enlarged and refined. A pass starts from noise alone, or from a
latent that is noised to the level from which its steps lead down. `draw` is all of that but for the transformer: it
*asks* for a velocity and waits until it gets one. `generate` answers each question at once; the engine lets many
drawings ask together.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hidream.model.finite import not_finite
from hidream.model.latents.init_image import Canvas, cells, open_canvas
from hidream.model.latents.shape import Grid, fit, render_grid, to_pixels
from hidream.model.model import Model
from hidream.model.network.config import Recipe, recipe_of
from hidream.model.network.linear import Changes
from hidream.model.network.ragged_batch import Conditioning
from hidream.model.network.transformer import Transformer
from hidream.model.sampling import sampler, step_cache
from hidream.model.sampling.sampler import SamplerState, Schedule
from hidream.model.sampling.step_cache import SLOPE, History
from hidream.model.text.text_encoders import TextEmbeds
from hidream.types import ImageRequest, Prompts, Render, Size, Timings

REFINE_ABOVE = 1.2
"""Times the best area from which a size is refined by default; up to there enlarging costs nothing that is seen."""
REFINE_FROM = 0.6
"""Noise level at which the second pass begins: the layout of the first stays, details are drawn anew."""

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all) after each step; whatever it raises ends the picture."""
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
    """One run of the sampler, and which of its steps ask the model."""

    grid: Grid
    schedule: Schedule
    asked: tuple[bool, ...]

    @property
    def asked_times(self) -> list[float]:
        """Model times of the steps that ask."""
        return [time for time, asked in zip(self.schedule.timesteps, self.asked, strict=True) if asked]


@dataclass(frozen=True, slots=True)
class Sketch:
    """What is settled of a picture before anything is computed."""

    request: ImageRequest
    recipe: Recipe
    passes: tuple[Pass, ...]
    canvas: Canvas | None
    changes: Changes
    warnings: tuple[str, ...]  # what whoever asked should know before anything is computed

    @property
    def prompts(self) -> list[str | Prompts]:
        """What the text encoders are asked: the negative prompt first, if the recipe is guided."""
        guided = self.recipe.guidance > 1
        return [self.request.negative_prompt, self.request.prompt] if guided else [self.request.prompt]

    @property
    def steps(self) -> int:
        """Steps of all passes, those that do not ask the model among them."""
        return sum(each.schedule.steps for each in self.passes)


class Ask(NamedTuple):
    """A drawing's question to a transformer: the velocity of `latent` [B, C, h, w]; B is 2 with guidance."""

    transformer: Transformer
    latent: Tensor
    modulation: Tensor  # [B, M]
    conditioning: Conditioning


Drawing = Generator[Ask, Tensor, Tensor]
"""Asks for velocities [B, C, h, w] until the picture is drawn; then returns its latent [1, C, h', w']."""
Tick = Callable[[int, Tensor], None]
"""Called after each step with the steps done and what the model takes the picture to be, [1, C, h, w]."""


@torch.inference_mode()
def generate(model: Model, request: ImageRequest, on_step: OnStep | None = None) -> Picture:
    """Draw `request.prompt` at exactly `request.size`.

    The figure of the reference's pipeline (diffusers 0.42.1, pipeline_hidream_image.py) with its two promises kept:
    the size that was asked, and one picture for one seed. Raises InvalidInput on files and LoRAs that cannot be used,
    NotFinite as `finish` does, and whatever `on_step` raises.
    """
    sketch = outline(model, request)
    started = now(model.device)
    text = model.text.embed(sketch.prompts)
    embedded = now(model.device)

    def tick(done: int, _x0: Tensor) -> None:
        if on_step:
            on_step(done, sketch.steps)

    drawing = draw(model, sketch, text.embeds, tick)
    said: Ask | Tensor = next(drawing)
    with model.phases.denoising():
        while isinstance(said, Ask):
            packed = said.transformer.lay_out([said.conditioning])
            (velocity,) = said.transformer.velocity([said.latent], [said.modulation], packed)
            said = answer(drawing, velocity)
    denoised = now(model.device)

    pixels = finish(model, sketch, said)
    done = now(model.device)
    timings = Timings(embedded - started, denoised - embedded, done - denoised)
    return Picture(pixels, timings, sketch.warnings + text.warnings)


def outline(model: Model, request: ImageRequest, canvas: Canvas | None = None) -> Sketch:
    """Settle what can be settled before anything is computed.

    `canvas` is what was prepared for the request, or that of an equal one; without it, the request's files are read.
    Raises InvalidInput on files that are no pictures, and on LoRAs that cannot be used.
    """
    recipe = resolve(model, request)
    passes = plan_passes(model, request, recipe)
    _, dtype = model.transformer_of(request.mode)
    canvas = canvas or open_canvas(request, _sizes(model, passes))
    changes, left_out = model.changes(request.loras, dtype)
    warnings = left_out if canvas is None else canvas.warnings + left_out
    return Sketch(request, recipe, passes, canvas, changes, warnings)


def canvas_sizes(model: Model, request: ImageRequest) -> frozenset[Size]:
    """Say at which sizes a request needs its image; reads numbers of the model only, and so from any thread."""
    return frozenset({request.size, *_sizes(model, plan_passes(model, request, resolve(model, request)))})


def draw(model: Model, sketch: Sketch, text: TextEmbeds, tick: Tick) -> Drawing:
    """Lead noise to a picture, one question to the transformer at a time.

    Everything that only one request needs is computed here; all of it happens while the drawing is resumed. To be
    resumed within `torch.inference_mode`; the first `next`, which may use the autoencoder, outside of the phase of
    denoising.
    """
    request, recipe, canvas = sketch.request, sketch.recipe, sketch.canvas
    transformer, dtype = model.transformer_of(request.mode)
    text = TextEmbeds(*(embeds.to(dtype) for embeds in text))
    generator, x0, done = sampler.generator_of(request.seed), None, 0
    laid = [None if canvas is None else lay(model, canvas, each.grid) for each in sketch.passes]
    for each, given in zip(sketch.passes, laid, strict=True):
        conditioning = transformer.condition(
            *text, each.grid, padded=request.render is Render.REFERENCE, changes=sketch.changes
        )
        modulations = iter(transformer.modulations(each.asked_times, conditioning))
        noise = initial_noise(model, each.grid, generator)
        start = given if x0 is None else enlarge(x0, noise)
        keep = _keep_nothing if canvas is None or given is None else keeping(model, canvas, each.grid, given, noise)
        x = noised(start, noise, each.schedule)
        sigmas = each.schedule.sigmas
        state, history = SamplerState(each.schedule, generator), History(sigmas, SLOPE[recipe.sampler])
        for i, asked in enumerate(each.asked):
            if asked:
                latent = x.to(dtype).expand(text.pooled.shape[0], -1, -1, -1)
                said = yield Ask(transformer, latent, next(modulations), conditioning)
                velocity = guided(said.float(), recipe.guidance)
                history.note(x - sigmas[i] * velocity, i)
            else:
                velocity = history.velocity(x, i)
            x, state = sampler.step(recipe.sampler, x, velocity, state, i)
            x = keep(x, sigmas[i + 1])
            done += 1
            tick(done, history.estimate(i))
        x0 = x
    assert x0 is not None, "there is at least one pass"
    return x0


def answer(drawing: Drawing, velocity: Tensor) -> Ask | Tensor:
    """Let a drawing go on: to its next question, or to its end, the latent."""
    try:
        return drawing.send(velocity)
    except StopIteration as end:
        latent: Tensor = end.value
        return latent


def guided(velocity: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance, where the velocity is one of the negative prompt and one of the prompt."""
    if velocity.shape[0] == 1:
        return velocity
    negative, positive = velocity.chunk(2)
    return negative + guidance * (positive - negative)


@torch.inference_mode()
def finish(model: Model, sketch: Sketch, x0: Tensor) -> np.ndarray:
    """Decode a drawing's latent and bring the picture to the size that was asked: uint8 pixels [height, width, 3].

    Raises NotFinite where the latent or the pixels are not finite numbers, which would be delivered as black.
    """
    size, canvas = sketch.request.size, sketch.canvas
    with model.phases.autoencoding():
        decoded = model.vae.decode(x0)[0].float()
        finite = torch.stack((torch.isfinite(x0).all(), torch.isfinite(decoded).all()))
        drawn = fit(decoded, size)
    pixels = to_pixels(drawn if canvas is None else canvas.at(size).keep(drawn)).cpu().numpy()
    latent_finite, pixels_finite = finite.tolist()  # after the copy above, which has waited for the device
    if not (latent_finite and pixels_finite):
        raise not_finite(model, sketch.request, "pixels" if latent_finite else "latents")
    return pixels


def resolve(model: Model, request: ImageRequest) -> Recipe:
    """Return the variant's recipe with what the request says otherwise."""
    recipe = recipe_of(model.variant, request.conformance, request.sampler, model.transformer.config.max_tokens)
    asked: dict[str, Any] = {"steps": request.steps, "guidance": request.guidance, "shift": request.shift}
    return dataclasses.replace(recipe, **{name: value for name, value in asked.items() if value is not None})


def plan_passes(model: Model, request: ImageRequest, recipe: Recipe) -> tuple[Pass, ...]:
    """Settle grids, noise levels and questions: one pass, or a second one that refines on the size's own grid."""

    def grid(render: Render) -> Grid:
        return render_grid(request.size, render, model.token_px, model.best_tokens, model.transformer.config.max_tokens)

    def one(grid: Grid, schedule: Schedule) -> Pass:
        return Pass(grid, schedule, step_cache.plan(request.mode, recipe.sampler, schedule, grid.rows * grid.columns))

    whole = sampler.schedule(recipe.sampler, recipe.steps, recipe.shift, request.conformance)
    share = 1.0 if request.image is None else request.strength
    first = one(grid(request.render), _tail(whole, whole.steps - max(1, int(whole.steps * share))))
    native = grid(Render.NATIVE)
    larger = native.rows * native.columns / (first.grid.rows * first.grid.columns)
    refines = request.render is Render.REFINE and larger > 1
    refines |= request.render is Render.BEST and larger > REFINE_ABOVE and model.refines
    if not refines:
        return (first,)
    below = sum(sigma > REFINE_FROM for sigma in whole.sigmas[:-1])
    return first, one(native, _tail(whole, min(below, whole.steps - 1)))


def _sizes(model: Model, passes: Iterable[Pass]) -> Iterator[Size]:
    return (size_of(model, each.grid) for each in passes)


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
    picture = canvas.at(size_of(model, grid)).picture
    with model.phases.autoencoding():
        return model.vae.encode(picture[None].to(model.device)).float()


def size_of(model: Model, grid: Grid) -> Size:
    """Return what the model draws on a grid, in pixels."""
    return Size(width=grid.columns * model.token_px, height=grid.rows * model.token_px)


def keeping(model: Model, canvas: Canvas, grid: Grid, given: Tensor, noise: Tensor) -> Keep:
    """Make the function that sets what lies outside the canvas's mask back to `given`, at any noise level."""
    fitting = canvas.at(size_of(model, grid)).mask
    if fitting is None:
        return _keep_nothing
    mask = cells(fitting, *given.shape[-2:]).to(given.device)

    def keep(x: Tensor, sigma: float) -> Tensor:
        return torch.where(mask > 0, x, (1 - sigma) * given + sigma * noise)

    return keep


def _keep_nothing(x: Tensor, sigma: float) -> Tensor:
    return x


def _tail(schedule: Schedule, start: int) -> Schedule:
    """What is left of a schedule from step `start` on."""
    return Schedule(sigmas=schedule.sigmas[start:], timesteps=schedule.timesteps[start:])


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
