"""The folders that training leaves: the diffusers layout, in 16 bit, for stock diffusers and for our own loader."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

from hidream.model.network.config import Sampler
from hidream.model.network.transformer import Transformer
from hidream.types import SAMPLING_PRESETS, Variant
from stage import arguments

SAMPLE_SIZE = 16
"""Side of the best square in latent cells, which our loader reads from model_index.json."""
SHARED = ("vae", *(f"{part}{suffix}" for part in ("text_encoder", "tokenizer") for suffix in ("", "_2", "_3", "_4")))
INDEX: dict[str, Any] = {
    "_class_name": "HiDreamImagePipeline",
    "_diffusers_version": diffusers.__version__,
    "_default_sample_size": SAMPLE_SIZE,
    "_refines": False,  # it was trained at its best area only
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "text_encoder_4": ["transformers", "LlamaForCausalLM"],
    **{f"tokenizer{suffix}": ["transformers", "PreTrainedTokenizerFast"] for suffix in ("", "_2", "_3", "_4")},
    "transformer": ["diffusers", "HiDreamImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderDC"],
}


def save_variant(transformer: Transformer, variant: Variant, folder: Path) -> None:
    """Write what is a variant's own: transformer, scheduler and index."""
    (folder / "transformer").mkdir(parents=True, exist_ok=True)
    config = {"_class_name": "HiDreamImageTransformer2DModel", **dataclasses.asdict(transformer.config)}
    (folder / "transformer" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {key: value.to("cpu", torch.float16).contiguous() for key, value in transformer.state_dict().items()}
    save_file(tensors, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    scheduler = scheduler_of(variant)
    scheduler.save_pretrained(folder / "scheduler")
    index = INDEX | {"scheduler": ["diffusers", type(scheduler).__name__]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def scheduler_of(variant: Variant) -> diffusers.SchedulerMixin:
    """Make the diffusers scheduler that samples as our recipe does."""
    recipe = SAMPLING_PRESETS[variant]
    if recipe.sampler is Sampler.FLASH:
        return diffusers.FlowMatchLCMScheduler(shift=recipe.shift)
    return diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=recipe.shift
    )


def assemble(runs: Path, nano: Path) -> None:
    """Put the finished stages together as the embedded model: Dev whole, Full and Fast with what is their own."""
    shutil.rmtree(nano, ignore_errors=True)
    for variant in Variant:
        if (finished := stage_of_variant(variant, runs) / variant).exists():
            shutil.copytree(finished, nano / variant)
    for part in SHARED:
        shutil.copytree(stage_of(part, runs) / part, nano / Variant.DEV / part)


def stage_of(part: str, runs: Path) -> Path:
    """Folder of the stage that makes a shared part."""
    return runs / ("autoencoder" if part == "vae" else "text")


def stage_of_variant(variant: Variant, runs: Path) -> Path:
    """Folder of the stage that makes a variant's transformer."""
    return runs / ("pretrain" if variant is Variant.FULL else variant)


if __name__ == "__main__":
    given = arguments(__doc__).parse_args()
    assemble(given.runs, given.runs / "nano")
