"""Stock diffusers' HiDreamImagePipeline on the embedded model's folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchLCMScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    UniPCMultistepScheduler,
)
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hidream.formats.convert import stock_folder
from hidream.model.checkpoint.checkpoint import embedded
from hidream.model.checkpoint.inferred import published_config
from hidream.types import Variant


class SeededLCM(FlowMatchLCMScheduler):
    """Draws the noise of each step from the request's generator, which the stock pipeline forgets to hand on."""

    generator: torch.Generator

    def step(self, *args: Any, **kwargs: Any) -> Any:
        return super().step(*args, **kwargs, generator=self.generator)


def stock_pipeline(variant: Variant) -> HiDreamImagePipeline:
    """The stock pipeline in float32."""
    shared = embedded(Variant.DEV).folder
    own = embedded(variant).folder
    kind = SeededLCM if variant is Variant.DEV else UniPCMultistepScheduler
    pipeline = HiDreamImagePipeline.from_pretrained(
        shared,
        transformer=stock_transformer(own / "transformer"),
        scheduler=kind.from_pretrained(own / "scheduler"),
        tokenizer_4=PreTrainedTokenizerFast.from_pretrained(shared / "tokenizer_4"),
        text_encoder_4=LlamaForCausalLM.from_pretrained(shared / "text_encoder_4", dtype=torch.float32),
        dtype=torch.float32,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.default_sample_size = 16
    return pipeline


def stock_transformer(folder: Path) -> HiDreamImageTransformer2DModel:
    """The stock transformer in float32."""
    with stock_folder(folder, published_config) as whole:
        return HiDreamImageTransformer2DModel.from_pretrained(whole, dtype=torch.float32)


def stock_image(pipeline: HiDreamImagePipeline, prompt: str, seed: int, **kwargs: Any) -> torch.Tensor:
    """Draw, at 256² and with nano's text length unless told otherwise: [3, H, W] in 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    pipeline.scheduler.generator = generator
    return pipeline(
        prompt,
        generator=generator,
        output_type="pt",
        **{"height": 256, "width": 256, "max_sequence_length": pipeline.tokenizer_4.model_max_length} | kwargs,
    ).images[0]
