"""The readable specification: `generate` turns one prompt into one image.

Everything that decides the pixels is in the request. Every random number comes from the request's seed and is drawn on
the CPU, so that a seed means the same noise on any device. This file knows no queue, no HTTP, and no files but those
that a request brings along.

An image takes one pass, or two: a small one first, which is then enlarged and refined. A pass starts from noise alone,
or from a latent that is noised to the level at which its steps begin. `denoise` is all of that except the transformer:
it yields a `ModelEvaluation` and waits for the velocity. `generate` computes each velocity at once; the engine batches
the evaluations of many requests.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hidream.model.finite import not_finite
from hidream.model.latents.init_image import InitImage, cells, open_init_image
from hidream.model.latents.init_latent import InitLatent
from hidream.model.latents.shape import Grid, fit, render_grid, to_pixels
from hidream.model.model import Model
from hidream.model.network.config import sampling_preset
from hidream.model.network.lora import Lora, checked_bytes, deltas
from hidream.model.network.lora import warnings as lora_warnings
from hidream.model.network.ragged_batch import Conditioning
from hidream.model.network.transformer import Transformer
from hidream.model.sampling import sampler, step_cache
from hidream.model.sampling.sampler import SamplerState, Schedule
from hidream.model.sampling.step_cache import SLOPE, History
from hidream.model.text.text_encoders import TextEmbeds
from hidream.request import ImageRequest, Prompts
from hidream.types import Render, SamplingPreset, Size, Step, Timings

REFINE_ABOVE = 1.2
"""Times the best area from which a size is refined by default; up to there enlarging costs nothing that is seen."""
REFINE_FROM = 0.6
"""Noise level at which the second pass begins: the layout of the first pass stays, details are generated anew."""

OnStep = Callable[[Step[np.ndarray]], None]
"""Called after each step of an image, on the thread that computes it; an exception ends the generation."""
Blend = Callable[[Tensor, float], Tensor]
"""Inpainting: resets the part of latent x that must not change to the init image at noise level σ."""


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """A finished image: uint8 pixels [height, width, 3], where the time went, and what its user should know."""

    pixels: np.ndarray
    timings: Timings
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pass:
    """One run of the sampler, and which of its steps evaluate the model."""

    grid: Grid
    schedule: Schedule
    evaluated: tuple[bool, ...]

    @property
    def evaluated_times(self) -> list[float]:
        """Model times of the steps that evaluate the model."""
        pairs = zip(self.schedule.timesteps, self.evaluated, strict=True)
        return [time for time, evaluated in pairs if evaluated]


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request with everything settled that can be settled before anything is computed.

    Holds nothing on the device, however long it waits: `denoise` copies its LoRAs there.
    """

    request: ImageRequest
    preset: SamplingPreset
    passes: tuple[Pass, ...]
    init_image: InitImage | InitLatent | None
    loras: tuple[tuple[Lora, float], ...]  # in host memory, with their weights
    lora_bytes: int  # of their deltas on the device, while it is denoised
    warnings: tuple[str, ...]  # for the user, before anything is computed

    @property
    def prompts(self) -> list[str | Prompts]:
        """The prompts to encode: the negative prompt first, if the preset has guidance."""
        guided = self.preset.guidance > 1
        return [self.request.negative_prompt, self.request.prompt] if guided else [self.request.prompt]

    @property
    def steps(self) -> int:
        """Steps of all passes, including those that do not evaluate the model."""
        return sum(each.schedule.steps for each in self.passes)


class ModelEvaluation(NamedTuple):
    """One call of a transformer: it is to return the velocity of `latent` [B, C, h, w]; B is 2 with guidance."""

    transformer: Transformer
    latent: Tensor
    modulation: Tensor  # [B, M]
    conditioning: Conditioning


Denoising = Generator[ModelEvaluation, Tensor, Tensor]
"""Yields model evaluations, takes their velocities [B, C, h, w], and returns the final latent [1, C, h', w']."""
AfterStep = Callable[[int, Tensor], None]
"""Called after each step with the steps done and the current estimate of the final latent, [1, C, h, w]."""


@torch.inference_mode()
def generate(model: Model, request: ImageRequest, on_step: OnStep | None = None) -> GeneratedImage:
    """Generate an image of `request.prompt` at exactly `request.size`.

    Follows the reference pipeline (diffusers 0.42.1, pipeline_hidream_image.py), and keeps two promises of it: the
    requested size, and one image for one seed. `on_step` gets no previews; the engine makes them. Raises InvalidInput
    on files and LoRAs that cannot be used, NotFinite as `finish` does, and whatever `on_step` raises.
    """
    prepared = prepare(model, request)
    started = now(model.device)
    text = model.text.embed(prepared.prompts)
    embedded = now(model.device)

    def after_step(done: int, _x0: Tensor) -> None:
        if on_step:
            on_step(Step(done, prepared.steps))

    latent = generate_latent(model, prepared, text.embeds, after_step)
    denoised = now(model.device)

    pixels = finish(model, prepared, latent)
    done = now(model.device)
    timings = Timings(embedded - started, denoised - embedded, done - denoised)
    return GeneratedImage(pixels, timings, prepared.warnings + text.warnings)


@torch.inference_mode()
def generate_latent(model: Model, prepared: PreparedRequest, text: TextEmbeds, after_step: AfterStep) -> Tensor:
    """Run the steps of a prepared request whose `prompts` are embedded: the final latent [1, C, h, w], float32.

    Raises whatever `after_step` raises.
    """
    denoising = denoise(model, prepared, text, after_step)
    current: ModelEvaluation | Tensor = next(denoising)
    with model.phases.denoising():
        while isinstance(current, ModelEvaluation):
            batch = current.transformer.batch([current.conditioning])
            (velocity,) = current.transformer.velocity([current.latent], [current.modulation], batch)
            current = resume(denoising, velocity)
    return current


def prepare(
    model: Model,
    request: ImageRequest,
    init_image: InitImage | InitLatent | None = None,
    more_loras: Sequence[tuple[Lora, float]] = (),
) -> PreparedRequest:
    """Settle what can be settled before anything is computed.

    `init_image` is the request's image, decoded elsewhere, or that of an equal request, or a latent in its place;
    without it, the request's files are read here. `more_loras` are applied with those that the request names. Raises
    InvalidInput on files that are no images, and on LoRAs that cannot be used.
    """
    preset = resolve(model, request)
    passes = plan_passes(model, request, preset, from_latent=isinstance(init_image, InitLatent))
    _, dtype = model.transformer_of(request.mode)
    init_image = init_image or open_init_image(request, _sizes(model, passes))
    loras = (*model.weighted_loras(request.loras), *more_loras)
    lora_bytes, left_out = checked_bytes(loras, model.device, dtype), lora_warnings(loras)
    warnings = left_out if init_image is None else init_image.warnings + left_out
    return PreparedRequest(request, preset, passes, init_image, loras, lora_bytes, warnings)


def init_image_sizes(model: Model, request: ImageRequest) -> frozenset[Size]:
    """Return the sizes at which a request needs its init image; may be called from any thread."""
    return frozenset({request.size, *_sizes(model, plan_passes(model, request, resolve(model, request)))})


def denoise(model: Model, prepared: PreparedRequest, text: TextEmbeds, after_step: AfterStep) -> Denoising:
    """Denoise a request's latent, one model evaluation at a time.

    Everything that only one request needs is computed here, while the generator is resumed. Resume it within
    `torch.inference_mode`; call the first `next`, which may use the autoencoder, outside the denoising phase.
    """
    request, preset, init_image = prepared.request, prepared.preset, prepared.init_image
    transformer, dtype = model.transformer_of(request.mode)
    text = TextEmbeds(*(embeds.to(dtype) for embeds in text))
    generator, x0, done = sampler.generator_of(request.seed), None, 0
    encoded = [None if init_image is None else encode(model, init_image, each.grid) for each in prepared.passes]
    lora_deltas = deltas(prepared.loras, model.device, dtype)
    for each, init_latent in zip(prepared.passes, encoded, strict=True):
        conditioning = transformer.condition(
            *text, each.grid, padded=request.render is Render.REFERENCE, deltas=lora_deltas
        )
        modulations = iter(transformer.modulations(each.evaluated_times, conditioning))
        noise = initial_noise(model, each.grid, generator)
        start = init_latent if x0 is None else enlarge(x0, noise)
        blend: Blend = _no_blend
        if init_image is not None and init_latent is not None:
            blend = inpainting_blend(changes(model, init_image, each.grid), init_latent, noise)
        x = noised(start, noise, each.schedule)
        sigmas = each.schedule.sigmas
        state, history = SamplerState(each.schedule, generator), History(sigmas, SLOPE[preset.sampler])
        for i, evaluated in enumerate(each.evaluated):
            if evaluated:
                latent = x.to(dtype).expand(text.pooled.shape[0], -1, -1, -1)
                velocity = yield ModelEvaluation(transformer, latent, next(modulations), conditioning)
                velocity = guided(velocity.float(), preset.guidance)
                history.note(x - sigmas[i] * velocity, i)
            else:
                velocity = history.velocity(x, i)
            x, state = sampler.step(preset.sampler, x, velocity, state, i)
            x = blend(x, sigmas[i + 1])
            done += 1
            after_step(done, history.estimate(i))
        x0 = x
    assert x0 is not None, "there is at least one pass"
    return x0


def resume(denoising: Denoising, velocity: Tensor) -> ModelEvaluation | Tensor:
    """Resume with a velocity: return the next model evaluation or, at the end, the latent."""
    try:
        return denoising.send(velocity)
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
def finish(model: Model, prepared: PreparedRequest, x0: Tensor) -> np.ndarray:
    """Decode the final latent and bring the image to the requested size: uint8 pixels [height, width, 3].

    Raises NotFinite where the latent or the pixels are not finite numbers, which would be delivered as black.
    """
    size, init_image = prepared.request.size, prepared.init_image
    with model.phases.autoencoding():
        decoded = model.vae.decode(x0)[0].float()
        finite = torch.stack((torch.isfinite(x0).all(), torch.isfinite(decoded).all()))
        generated = fit(decoded, size)
    blended = init_image.at(size).blend(generated) if isinstance(init_image, InitImage) else generated
    pixels = to_pixels(blended).cpu().numpy()
    latent_finite, pixels_finite = finite.tolist()  # after the copy above, which has waited for the device
    if not (latent_finite and pixels_finite):
        raise not_finite(model, prepared.request, "pixels" if latent_finite else "latents")
    return pixels


def resolve(model: Model, request: ImageRequest) -> SamplingPreset:
    """Return the variant's sampling preset, with the request's own values in place of its."""
    preset = sampling_preset(model.variant, request.conformance, request.sampler, model.transformer.config.max_tokens)
    own: dict[str, Any] = {"steps": request.steps, "guidance": request.guidance, "shift": request.shift}
    return dataclasses.replace(preset, **{name: value for name, value in own.items() if value is not None})


def plan_passes(
    model: Model, request: ImageRequest, preset: SamplingPreset, *, from_latent: bool = False
) -> tuple[Pass, ...]:
    """Settle grids, noise levels and evaluations: one pass, or a second one that refines on the size's own grid.

    `from_latent`: whether a latent takes the place of the request's image.
    """

    def grid(render: Render) -> Grid:
        return render_grid(request.size, render, model.token_px, model.best_tokens, model.transformer.config.max_tokens)

    def one(grid: Grid, schedule: Schedule) -> Pass:
        tokens = grid.rows * grid.columns
        return Pass(grid, schedule, step_cache.plan(request.mode, preset.sampler, schedule, tokens))

    complete = sampler.schedule(preset.sampler, preset.steps, preset.shift, request.conformance)
    share = request.strength if from_latent or request.image is not None else 1.0
    first = one(grid(request.render), _tail(complete, complete.steps - max(1, int(complete.steps * share))))
    native = grid(Render.NATIVE)
    larger = native.rows * native.columns / (first.grid.rows * first.grid.columns)
    refines = request.render is Render.REFINE and larger > 1
    refines |= request.render is Render.BEST and larger > REFINE_ABOVE and model.refines
    if not refines:
        return (first,)
    below = sum(sigma > REFINE_FROM for sigma in complete.sigmas[:-1])
    return first, one(native, _tail(complete, min(below, complete.steps - 1)))


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


def encode(model: Model, init_image: InitImage | InitLatent, grid: Grid) -> Tensor:
    """Encode the init image for a grid: its latent [1, C, h, w], float32."""
    if isinstance(init_image, InitLatent):
        patch = model.transformer.config.patch_size
        return init_image.at(grid.rows * patch, grid.columns * patch).to(model.device)
    image = init_image.at(size_of(model, grid)).image
    with model.phases.autoencoding():
        return model.vae.encode(image[None].to(model.device)).float()


def size_of(model: Model, grid: Grid) -> Size:
    """Return the size of the image that the model generates on a grid, in pixels."""
    return Size(width=grid.columns * model.token_px, height=grid.rows * model.token_px)


def changes(model: Model, init_image: InitImage | InitLatent, grid: Grid) -> Tensor | None:
    """Return the latent cells of a grid that may change [1, 1, h, w], 1 or 0; None for all."""
    patch = model.transformer.config.patch_size
    rows, columns = grid.rows * patch, grid.columns * patch
    if isinstance(init_image, InitLatent):
        return init_image.changes(rows, columns)
    mask = init_image.at(size_of(model, grid)).mask
    return None if mask is None else cells(mask, rows, columns)


def inpainting_blend(changed: Tensor | None, init_latent: Tensor, noise: Tensor) -> Blend:
    """Make the function that resets everything but the changed cells to `init_latent`, at any noise level."""
    if changed is None:
        return _no_blend
    within = changed.to(init_latent.device) > 0

    def blend(x: Tensor, sigma: float) -> Tensor:
        return torch.where(within, x, (1 - sigma) * init_latent + sigma * noise)

    return blend


def _no_blend(x: Tensor, sigma: float) -> Tensor:
    return x


def _tail(schedule: Schedule, start: int) -> Schedule:
    """What is left of a schedule from step `start` on."""
    return Schedule(sigmas=schedule.sigmas[start:], timesteps=schedule.timesteps[start:])


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
