"""The folders that training leaves: the diffusers layout, in 16 bit, for stock diffusers and for our own loader.

In the embedded model, only Dev has a transformer of its own. Full and Fast are stored as differences to Dev's, in six
bits for each value (`hidream.formats.difference`), which makes the package a third smaller; stock diffusers reads what
`hidream convert` makes of one.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hidream.formats import difference
from hidream.formats.detect import read
from hidream.formats.regular_file import sha256_of
from hidream.model.network.config import Sampler
from hidream.model.network.transformer import Transformer
from hidream.types import SAMPLING_PRESETS, Variant
from stage import arguments

SAMPLE_SIZE = 16
"""Side of the best square in latent cells, which our loader reads from model_index.json."""
WEIGHTS, DIFFERENCE = "diffusion_pytorch_model.safetensors", "difference.safetensors"
"""A transformer's file, whole or as a difference: diffusers finds only the first name."""
STEPS_MAX = 31
"""A difference of six bits. With five, the weights of Full are 0.8 % off instead of 0.4 % (docs/LOG.md)."""
SCALES = [0.85 + i / 320 for i in range(61)]
"""Tried for each row, as multiples of the one that reaches its largest difference: all of bfloat16 in this range."""
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
    save_file(tensors, folder / "transformer" / WEIGHTS)
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
    dev = nano / Variant.DEV / "transformer" / WEIGHTS
    for variant in (Variant.DEV, Variant.FULL, Variant.FAST):
        if (finished := stage_of_variant(variant, runs) / variant).exists():
            shutil.copytree(finished, nano / variant)
            if variant is not Variant.DEV and dev.exists():
                save_difference(nano / variant / "transformer", dev)
    for part in SHARED:
        shutil.copytree(stage_of(part, runs) / part, nano / Variant.DEV / part)


def save_difference(transformer: Path, base: Path) -> None:
    """Replace the weights in a folder by their difference to the file `base`, in the same folder of another model."""
    file, others = transformer / WEIGHTS, load_file(base)
    tensors: dict[str, Tensor] = {}
    for name, value in load_file(file).items():
        tensors |= _difference(name, value, others) if value.dim() == 2 else {name: value}
    stated = json.dumps({"base": base.parents[1].name, "sha256": sha256_of(base)})
    save_file(tensors, transformer / DIFFERENCE, {difference.METADATA: stated})
    file.unlink()


def _difference(name: str, value: Tensor, others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One matrix. Made twice: what is read from the file and written again is then the same file."""
    steps, scale = _steps(value, others[name])
    steps, scale = _steps(difference.add(others[name], steps, scale), others[name])
    return {name + difference.DIFFERENCE: steps, name + difference.SCALE: scale}


def _steps(value: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Steps int8 [O, I] and the scale of each row, bfloat16 [O, 1], of those tried the one with the least error."""
    wanted = value.float() - base.float()
    reach = wanted.abs().amax(dim=1, keepdim=True) / STEPS_MAX
    best_steps, best_scale = torch.zeros_like(value, dtype=torch.int8), torch.zeros_like(reach).to(torch.bfloat16)
    least = torch.full_like(reach, torch.inf)
    for multiple in SCALES:
        scale = (reach * multiple).to(torch.bfloat16)
        steps = (wanted / scale.float()).nan_to_num(0.0).round().clamp(-STEPS_MAX, STEPS_MAX).to(torch.int8)
        error = (difference.add(base, steps, scale).float() - value.float()).square().sum(dim=1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        best_steps, best_scale = torch.where(better, steps, best_steps), torch.where(better, scale, best_scale)
    return best_steps, best_scale


def copy_whole(source: Path, target: Path) -> None:
    """Copy the folder of a variant without the shared parts, the transformer as a whole file."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*SHARED, DIFFERENCE), dirs_exist_ok=True)
    if (source / "transformer" / DIFFERENCE).exists():
        save_file(read(source / "transformer").tensors, target / "transformer" / WEIGHTS)


def stage_of(part: str, runs: Path) -> Path:
    """Folder of the stage that makes a shared part."""
    return runs / ("autoencoder" if part == "vae" else "text")


def stage_of_variant(variant: Variant, runs: Path) -> Path:
    """Folder of the stage that makes a variant's transformer."""
    return runs / ("pretrain" if variant is Variant.FULL else variant)


if __name__ == "__main__":
    given = arguments(__doc__).parse_args()
    assemble(given.runs, given.runs / "nano")
