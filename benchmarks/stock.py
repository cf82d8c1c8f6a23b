"""diffusers' own HiDreamImagePipeline on a folder that ours has loaded, with a stopwatch, and with what speeds it up.

The pipeline rescales every request to its `default_sample_size`; it is set to the model's best area, as ours has it.
What it returns is brought to the asked size and written as PNG with Pillow's defaults, as its users do. Its scheduler
is handed the request's generator, which the pipeline forgets (it would re-noise from the global one): so both sides
see the same noise, and draw the same image.

`SPEED_UPS` names its options. diffusers' caches know other models by name and need a mixin that the HiDream transformer
lacks; what can be done from outside without touching diffusers is done here, and what cannot raises.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    CacheMixin,
    FirstBlockCacheConfig,
    FlowMatchLCMScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    TaylorSeerCacheConfig,
    UniPCMultistepScheduler,
)
from PIL import Image

from hidream.formats.convert import stock_folder
from hidream.model.checkpoint.checkpoint import NANO
from hidream.model.checkpoint.inferred import published_config
from hidream.model.model import Model
from hidream.request import ImageRequest
from hidream.types import SAMPLING_PRESETS, Sampler, SamplingPreset, Variant

STAGES = ("text", "denoise", "decode", "png")
BLOCK = r"(double|single)_stream_blocks\.\d+"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a side really computed for an image; sides that differ in it cannot be compared."""

    latent: tuple[int, ...]
    text_tokens: int
    steps: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Drawn:
    """An image: seconds of each stage, pixels [height, width, 3] in uint8, and what was computed for it."""

    seconds: dict[str, float]
    pixels: np.ndarray
    seen: Seen


class Cacheable(HiDreamImageTransformer2DModel, CacheMixin):
    """The transformer with the entry to diffusers' caches that its own class lacks (0.42.1)."""


@dataclass(frozen=True, slots=True)
class SpeedUp:
    """One way to make the stock pipeline faster."""

    apply: Callable[[Any, SamplingPreset], None]  # to its transformer
    kind: type[HiDreamImageTransformer2DModel] = HiDreamImageTransformer2DModel
    lossy: bool = False
    compiles: bool = False


def plain(transformer: Any, preset: SamplingPreset) -> None:
    """Leave it as it is."""


def compiled(transformer: Any, preset: SamplingPreset) -> None:
    """torch.compile the whole transformer; its `compile_repeated_blocks` names no blocks and raises (0.42.1)."""
    transformer.compile()


def first_block_cached(transformer: Any, preset: SamplingPreset) -> None:
    """Skip all blocks but the first where its answer has hardly changed."""
    transformer.enable_cache(FirstBlockCacheConfig())


def taylor_cached(interval: int, transformer: Any, preset: SamplingPreset) -> None:
    """Ask each block every `interval`-th step only and predict it in between.

    By its last answer where every step brings fresh noise (a line through the last two was 3 to 8 dB worse), else by
    diffusers' default, a line.
    """
    order = 0 if preset.sampler is Sampler.FLASH else 1
    config = TaylorSeerCacheConfig(
        cache_interval=interval, max_order=order, taylor_factors_dtype=transformer.dtype, cache_identifiers=[BLOCK]
    )
    transformer.enable_cache(config)


SPEED_UPS = {
    "diffusers": SpeedUp(plain),
    "diffusers, torch.compile": SpeedUp(compiled, compiles=True),
    "diffusers, first-block cache": SpeedUp(first_block_cached, Cacheable, lossy=True),
    "diffusers, TaylorSeer 2": SpeedUp(partial(taylor_cached, 2), Cacheable, lossy=True),
    "diffusers, TaylorSeer 3": SpeedUp(partial(taylor_cached, 3), Cacheable, lossy=True),
}


def transformer_of(folder: Path, kind: type, dtype: torch.dtype) -> HiDreamImageTransformer2DModel:
    """Load a transformer of diffusers' classes; nano's Full and Fast are differences, which it does not read."""
    with stock_folder(folder, published_config) as whole:
        return kind.from_pretrained(whole, dtype=dtype)


class Stock:
    """The stock pipeline; calling it draws an image."""

    def __init__(self, variant: Variant, model: Model, speed_up: SpeedUp) -> None:
        shared, own = NANO / Variant.DEV, NANO / variant
        scheduler = UniPCMultistepScheduler if variant is Variant.FULL else FlowMatchLCMScheduler
        self.preset, self.text_tokens = SAMPLING_PRESETS[variant], model.text.tokens
        self.pipeline = HiDreamImagePipeline.from_pretrained(
            shared,
            transformer=transformer_of(own / "transformer", speed_up.kind, model.dtype),
            scheduler=scheduler.from_pretrained(own / "scheduler"),
            dtype=model.dtype,
        ).to(model.device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.default_sample_size = int(model.best_tokens**0.5) * model.transformer.config.patch_size
        speed_up.apply(self.pipeline.transformer, self.preset)
        self._generator, self._steps = torch.Generator(), 0
        self._said = self._latent = torch.empty(0)
        self._spoken = self._decoding = 0.0
        self._watch()

    def __call__(self, request: ImageRequest) -> Drawn:
        """Draw the request; the sampling preset is the variant's."""
        self._generator.manual_seed(request.seed)
        self._steps, started = 0, now()
        with self._context():
            image = self.pipeline(
                request.prompt,
                height=request.size.height,
                width=request.size.width,
                num_inference_steps=self.preset.steps,
                guidance_scale=self.preset.guidance,
                max_sequence_length=self.text_tokens,
                generator=self._generator,
            ).images[0]
        image = image.resize((request.size.width, request.size.height), Image.Resampling.BICUBIC)
        scaled = now()
        image.save(io.BytesIO(), "PNG")
        seconds = (self._spoken - started, self._decoding - self._spoken, scaled - self._decoding, now() - scaled)
        seen = Seen(tuple(self._latent.shape), self._said.shape[-2], self._steps, self._latent.dtype)
        return Drawn(dict(zip(STAGES, seconds, strict=True)), np.asarray(image), seen)

    def _context(self) -> AbstractContextManager[None]:
        """Tell diffusers' caches who asks; a guided image asks once for both prompts."""
        transformer = self.pipeline.transformer
        return transformer.cache_context("cond") if isinstance(transformer, CacheMixin) else nullcontext()

    def _watch(self) -> None:
        """Put a stopwatch and a look at what passes by around three calls of the pipeline."""
        encode, step, decode = self.pipeline.encode_prompt, self.pipeline.scheduler.step, self.pipeline.vae.decode
        noise = {"generator": self._generator} if isinstance(self.pipeline.scheduler, FlowMatchLCMScheduler) else {}

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            said = encode(*args, **kwargs)
            self._said, self._spoken = said[0], now()
            return said

        def step_once(*args: Any, **kwargs: Any) -> Any:
            self._steps += 1
            return step(*args, **noise, **kwargs)

        def decode_latent(latent: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._latent, self._decoding = latent, now()
            return decode(latent, *args, **kwargs)

        self.pipeline.encode_prompt = encode_prompt
        self.pipeline.scheduler.step = step_once
        self.pipeline.vae.decode = decode_latent


def now() -> float:
    """Seconds, when the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
