"""ComfyUI's own HiDream transformer as a peer, from a checkout that the user names; nothing of it is kept here.

Only what its model needs is imported: its operations, its choice of attention and its model code, set up by its own
command line (`OPTIONS`). Its sampler, loader and server are not: one call of the transformer is compared, with the
weights as this process has them, in the type that they have.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OPTIONS = {"cpu": ["--cpu", "--use-pytorch-cross-attention"], "cuda": ["--use-pytorch-cross-attention"]}
"""On a CPU it would choose an attention that saves memory; with torch's, nano takes 0.84 of its time (1,024 tokens)."""


def comfyui_transformer(
    checkout: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], device: torch.device
) -> nn.Module:
    """Build the transformer of the ComfyUI in `checkout` from a published configuration, and give it the weights.

    Raises ImportError when there is no ComfyUI, or a package that it wants is missing.
    """
    _set_up(checkout, OPTIONS[device.type])
    model = importlib.import_module("comfy.ldm.hidream.model")
    operations = importlib.import_module("comfy.ops").disable_weight_init
    dtype = weights["x_embedder.proj.weight"].dtype
    with torch.device("meta"):
        transformer: nn.Module = model.HiDreamImageTransformer2DModel(**config, dtype=dtype, operations=operations)
    transformer.load_state_dict(weights, assign=True)
    return transformer.eval().requires_grad_(False)


def answer(
    transformer: nn.Module, latent: Tensor, timestep: Tensor, t5: Tensor, llama: Tensor, pooled: Tensor
) -> Tensor:
    """Ask it for a velocity [B, C, H, W]: noise − image; llama is [layers, B, L, D] as everywhere here."""
    velocity: Tensor = transformer(
        latent, timestep, y=pooled, context=t5, encoder_hidden_states_llama3=llama.movedim(0, 1)
    )
    return velocity


def version(checkout: Path) -> str:
    """Its release, from its own `comfyui_version.py`; "unknown" where there is none."""
    file = checkout / "comfyui_version.py"
    if not file.is_file():
        return "unknown"
    stated = [line for line in file.read_text().splitlines() if line.startswith("__version__")]
    return stated[0].split("=")[1].strip(" \"'") if stated else "unknown"


def _set_up(checkout: Path, options: list[str]) -> None:
    """Make `comfy` importable and have it read `options` as if they were its command line, which it reads once."""
    if not (checkout / "comfy" / "ldm" / "hidream" / "model.py").is_file():
        raise ImportError(f"{checkout} has no comfy/ldm/hidream/model.py; accepted: a checkout of ComfyUI")
    sys.path.insert(0, str(checkout))
    own = sys.argv
    sys.argv = ["comfyui", *options]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = own
