"""A picture of nano end to end, by stage, against diffusers' own HiDreamImagePipeline on the same folder, interleaved.

That pipeline rescales every request to its `default_sample_size`; it is set to nano's best area, so that latent shape,
text length, steps and type are equal on both sides (printed; unequal rows are void). What it returns is then brought to
the asked size and written as PNG with Pillow's defaults, as its users do; ours does the same within `generate` and
`outputs.encode`.

    python benchmarks/pipeline.py [--variant dev] [--rounds 7] [--threads 2]
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    FlowMatchLCMScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    UniPCMultistepScheduler,
)
from measure import Spread, ratio, report
from PIL import Image

from hidream.model.config import RECIPES
from hidream.model.loading import Model, load
from hidream.model.pipeline import generate
from hidream.model.shape import render_grid
from hidream.model.weights import embedded
from hidream.outputs.encode import encode
from hidream.types import ImageFormat, ImageRequest, Render, Size, Variant

PROMPT = "flat style a sailboat in the ocean"
STAGES = ("text", "denoise", "decode", "png")


class Stock:
    """The stock pipeline with a stopwatch on its stages."""

    def __init__(self, variant: Variant, model: Model) -> None:
        shared, own = embedded(Variant.DEV).folder, embedded(variant).folder
        scheduler = UniPCMultistepScheduler if variant is Variant.FULL else FlowMatchLCMScheduler
        self.pipeline = HiDreamImagePipeline.from_pretrained(
            shared,
            transformer=HiDreamImageTransformer2DModel.from_pretrained(own / "transformer", dtype=model.dtype),
            scheduler=scheduler.from_pretrained(own / "scheduler"),
            dtype=model.dtype,
        ).to(model.device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.default_sample_size = int(model.best_tokens**0.5) * model.transformer.config.patch_size
        self.tokens, self.recipe = model.text.tokens, RECIPES[variant]
        self.seconds: dict[str, float] = {}
        self.latent_shape: tuple[int, ...] = ()
        self._watch(self.pipeline, "encode_prompt", "text")
        self._watch(
            self.pipeline.vae,
            "decode",
            "decode",
            lambda args: setattr(self, "latent_shape", tuple(args[0].shape)),
        )

    def _watch(self, owner: Any, name: str, stage: str, note: Callable[[tuple[Any, ...]], None] | None = None) -> None:
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if note:
                note(args)
            started = _now()
            result = original(*args, **kwargs)
            self.seconds[stage] = _now() - started
            return result

        setattr(owner, name, timed)

    def __call__(self, size: Size) -> dict[str, float]:
        started = _now()
        image = self.pipeline(
            PROMPT,
            height=size.height,
            width=size.width,
            num_inference_steps=self.recipe.steps,
            guidance_scale=self.recipe.guidance,
            max_sequence_length=self.tokens,
            generator=torch.Generator().manual_seed(7),
        ).images[0]
        drawn = _now()
        image = image.resize((size.width, size.height), Image.Resampling.BICUBIC)
        self.seconds["decode"] += _now() - drawn
        scaled = _now()
        image.save(io.BytesIO(), "PNG")
        self.seconds["png"] = _now() - scaled
        self.seconds["denoise"] = drawn - started - self.seconds["text"] - self.seconds["decode"] + (scaled - drawn)
        return dict(self.seconds)


def ours(model: Model, size: Size) -> dict[str, float]:
    picture = generate(model, ImageRequest(PROMPT, size, seed=7))
    started = time.perf_counter()
    encode(picture.pixels, ImageFormat.PNG, seed=7, version=model.version)
    t = picture.timings
    return {
        "text": t.text_s,
        "denoise": t.denoise_s,
        "decode": t.decode_s,
        "png": time.perf_counter() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", type=Variant, default=Variant.DEV, choices=[Variant.DEV, Variant.FULL])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load(arguments.variant)
    model = dataclasses.replace(model, text=dataclasses.replace(model.text, cache=None))  # the peer encodes each time
    stock = Stock(arguments.variant, model)
    recipe, config = RECIPES[arguments.variant], model.transformer.config

    rows: list[dict[str, object]] = []
    for side in (512, 1024, 1536):
        size = Size(side, side)
        grid = render_grid(size, Render.BEST, model.token_px, model.best_tokens, config.max_tokens)
        seconds: dict[str, list[dict[str, float]]] = defaultdict(list)
        for i in range(arguments.rounds + 1):
            results = {"diffusers": stock(size), "ours": ours(model, size)}
            for name, result in results.items():
                if i:  # the first round warms up
                    seconds[name].append(result)
        shape = (1, config.in_channels, grid.rows * config.patch_size, grid.columns * config.patch_size)
        assert stock.latent_shape == shape, f"void: latents {stock.latent_shape} and {shape}"
        rows += [row(size, name, seconds[name], seconds["diffusers"]) for name in ("diffusers", "ours")]
        equal = {
            "latent": shape,
            "text tokens": stock.tokens,
            "steps": recipe.steps,
            "guidance": recipe.guidance,
        }
    report(
        "pipeline",
        rows,
        {**equal, "dtype": str(model.dtype), "rounds": arguments.rounds, "version": model.version},
    )


def row(size: Size, name: str, runs: list[dict[str, float]], base: list[dict[str, float]]) -> dict[str, object]:
    total = Spread.of([sum(run.values()) for run in runs])
    return {
        "size": str(size),
        "side": name,
        **{f"{stage} ms": Spread.of([run[stage] for run in runs]).median_ms for stage in STAGES},
        "total ms": str(total).strip(),
        "ratio": ratio([sum(run.values()) for run in base], [sum(run.values()) for run in runs]),
    }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
