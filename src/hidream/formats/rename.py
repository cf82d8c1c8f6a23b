"""Names of a part's tensors in each format that is written: the inverse of `detect.read`.

Transformer, T5 and CLIP have the same names everywhere (ComfyUI uses those of transformers). Source: as `comfy.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from hidream.formats.comfy import AUTOENCODER, replaced, with_reversed_level
from hidream.formats.quantized import StoredTensor
from hidream.parts import Kind

FLUX = tuple((ours, theirs) for theirs, ours in AUTOENCODER)
"""Names of diffusers' AutoencoderKL to FLUX's, by pieces."""


def for_diffusers(tensors: Mapping[str, StoredTensor], kind: Kind) -> dict[str, StoredTensor]:
    """Names in a folder of diffusers or transformers: Llama as the `model` of a model that talks."""
    return {f"model.{name}": tensor for name, tensor in tensors.items()} if kind is Kind.LLAMA else dict(tensors)


def for_comfy(tensors: Mapping[str, StoredTensor], kind: Kind) -> dict[str, StoredTensor]:
    """Names in ComfyUI's single files: an AutoencoderKL has FLUX's, other autoencoders stay as they are."""
    is_kl = any(name.startswith("decoder.up_blocks.0.resnets.") for name in tensors)
    return _flux(tensors) if kind is Kind.VAE and is_kl else for_diffusers(tensors, kind)


def _flux(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    levels = len({match[1] for name in tensors if (match := re.match(r"decoder\.up_blocks\.(\d+)\.", name))})
    named: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        new = replaced(FLUX, with_reversed_level(name, levels))
        is_product = re.search(r"\.attn_1\.(q|k|v|proj_out)\.weight$", new)
        named[new] = tensor[:, :, None, None] if is_product and isinstance(tensor, Tensor) else tensor
    return named
