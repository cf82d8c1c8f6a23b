"""The readable specification: `generate` is one prompt to one picture, `load` a checkpoint to a model.

Everything that decides the pixels is in the request; every random number comes from its seed, drawn on the CPU so that
a seed means the same noise on any device. Knows no queue, no files of pictures and no HTTP.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hidream
from hidream.errors import ConfigurationError
from hidream.model import sampler
from hidream.model.config import RECIPES, Recipe
from hidream.model.shape import Grid, fit, render_grid, to_pixels
from hidream.model.text import TextEncoders, load_text_encoders
from hidream.model.transformer import Transformer
from hidream.model.vae import Autoencoder, load_autoencoder
from hidream.model.weights import Checkpoint, embedded, load_transformer, weights_hash
from hidream.types import ImageRequest, Render, Timings, Variant

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all) after each step; whatever it raises ends the picture."""


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded checkpoint."""

    variant: Variant
    version: str
    text: TextEncoders
    transformer: Transformer
    vae: Autoencoder
    best_tokens: int
    device: torch.device
    dtype: torch.dtype

    @property
    def token_px(self) -> int:
        """Pixels that one image token covers, along one side."""
        return self.vae.factor * self.transformer.config.patch_size


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture: uint8 pixels [height, width, 3], and where the time went."""

    pixels: np.ndarray
    timings: Timings


@torch.inference_mode()
def generate(model: Model, request: ImageRequest, on_step: OnStep | None = None) -> Picture:
    """Draw `request.prompt` at exactly `request.size`.

    The figure of the reference's pipeline (diffusers 0.42.1, pipeline_hidream_image.py) with its two promises kept:
    the size that was asked, and one picture for one seed. Raises whatever `on_step` raises.
    """
    recipe = resolve(RECIPES[model.variant], request)
    grid = render_grid(
        request.size, request.render, model.token_px, model.best_tokens, model.transformer.config.max_tokens
    )
    started = _now(model.device)

    guided = recipe.guidance > 1
    prompts = [request.negative_prompt, request.prompt] if guided else [request.prompt]
    conditioning = model.transformer.condition(
        *model.text.encode(prompts), grid, padded=request.render is Render.REFERENCE
    )
    encoded = _now(model.device)

    schedule = sampler.schedule(recipe.sampler, recipe.steps, recipe.shift)
    modulations = model.transformer.modulations(schedule.timesteps, conditioning)
    state = sampler.SamplerState(schedule, sampler.generator_of(request.seed))
    x = initial_noise(model, grid, state.generator)
    for i, modulation in enumerate(modulations):
        latent = x.to(model.dtype).expand(len(prompts), -1, -1, -1)
        velocity = model.transformer.velocity(latent, modulation, conditioning).float()
        if guided:
            negative, positive = velocity.chunk(2)
            velocity = negative + recipe.guidance * (positive - negative)
        x, state = sampler.step(recipe.sampler, x, velocity, state, i)
        if on_step:
            on_step(i + 1, schedule.steps)
    denoised = _now(model.device)

    pixels = to_pixels(fit(model.vae.decode(x)[0].float(), request.size)).cpu().numpy()
    done = _now(model.device)
    return Picture(pixels, Timings(encoded - started, denoised - encoded, done - denoised))


def resolve(recipe: Recipe, request: ImageRequest) -> Recipe:
    """Return the variant's recipe with what the request says otherwise."""
    asked: dict[str, Any] = {"steps": request.steps, "guidance": request.guidance, "shift": request.shift}
    return dataclasses.replace(recipe, **{name: value for name, value in asked.items() if value is not None})


def initial_noise(model: Model, grid: Grid, generator: torch.Generator) -> Tensor:
    """Draw the noise a picture starts from, [1, C, h, w], float32."""
    config = model.transformer.config
    shape = (1, config.in_channels, grid.rows * config.patch_size, grid.columns * config.patch_size)
    return torch.randn(shape, generator=generator).to(model.device)


def load(
    variant: Variant,
    folder: Path | None = None,
    llama: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    hash_cache: Path | None = None,
) -> Model:
    """Load a checkpoint in the diffusers layout; without `folder` the embedded nano.

    `llama` is a folder of Llama-3.1-8B-Instruct for checkpoints without one. `hash_cache` is a file that remembers the
    digests of large weights. Raises CheckpointError when a part is missing or does not fit, ConfigurationError on an
    unknown device or dtype.
    """
    checkpoint = embedded(variant) if folder is None else Checkpoint(folder, llama=llama)
    where, kind = resolve_device(device), resolve_dtype(dtype, resolve_device(device))
    transformer = load_transformer(checkpoint, where, kind)
    vae = load_autoencoder(checkpoint, where, kind)
    digest = weights_hash(checkpoint.weight_files(), hash_cache)
    return Model(
        variant=variant,
        version=f"hidream-i1-{variant}/{digest}/exact/{where.type}-{str(kind).removeprefix('torch.')}/{hidream.__version__}",
        text=load_text_encoders(checkpoint, where, kind),
        transformer=transformer,
        vae=vae,
        best_tokens=_best_tokens(checkpoint, transformer),
        device=where,
        dtype=kind,
    )


def resolve_device(name: str) -> torch.device:
    """Settle "auto". Raises ConfigurationError on a device that torch does not know or this machine does not have."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigurationError(f"the device {name!r} cannot be used: {error}") from error
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Settle "auto": float32 on a CPU, where 16-bit arithmetic may be a hundred times slower, else bfloat16."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    if name not in DTYPES:
        raise ConfigurationError(f"the dtype {name!r} is not known; accepted: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _best_tokens(checkpoint: Checkpoint, transformer: Transformer) -> int:
    """Image tokens of the area the model draws best: 1024² pixels, unless the configuration says otherwise.

    `_default_sample_size` in model_index.json is a side in latent cells, as in diffusers' pipelines, which pass over
    private keys; the published checkpoints do not have it, their largest shape is their best.
    """
    side = checkpoint.index().get("_default_sample_size")
    config = transformer.config
    return int((side // config.patch_size) ** 2) if side else config.max_tokens


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
