"""Names of a part's tensors in each format that is written: the way back from what `detect.read` gives.

Transformer, T5 and CLIP have the same names everywhere (ComfyUI takes those of transformers). Source: as `comfy.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from hidream.formats.comfy import Stored
from hidream.formats.detect import Kind

FLUX = (
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
)
"""Names of diffusers' AutoencoderKL to FLUX's, but for the decoder's levels."""


def for_diffusers(tensors: Mapping[str, Stored], kind: Kind) -> dict[str, Stored]:
    """Names in a folder of diffusers or transformers: Llama as the `model` of a model that talks."""
    return {f"model.{name}": tensor for name, tensor in tensors.items()} if kind is Kind.LLAMA else dict(tensors)


def for_comfy(tensors: Mapping[str, Stored], kind: Kind) -> dict[str, Stored]:
    """Names in ComfyUI's single files: an AutoencoderKL has FLUX's, other autoencoders stay as they are."""
    is_kl = any(name.startswith("decoder.up_blocks.0.resnets.") for name in tensors)
    return _flux(tensors) if kind is Kind.VAE and is_kl else for_diffusers(tensors, kind)


def _flux(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    levels = len({match[1] for name in tensors if (match := re.match(r"decoder\.up_blocks\.(\d+)\.", name))})
    named: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        new = _level(name, levels)
        for pattern, replacement in FLUX:
            new = re.sub(pattern, replacement, new)
        is_product = re.search(r"\.attn_1\.(q|k|v|proj_out)\.weight$", new)
        named[new] = tensor[:, :, None, None] if is_product and isinstance(tensor, Tensor) else tensor
    return named


def _level(name: str, levels: int) -> str:
    """The decoder's levels, which FLUX counts from the other end."""
    match = re.match(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.(.*)", name)
    if not match:
        return name
    inside = {"resnets": "block", "upsamplers.0": "upsample"}[match[2]]
    return f"decoder.up.{levels - 1 - int(match[1])}.{inside}.{match[3]}"
