"""ComfyUI's single files: their tensors under the names that diffusers and transformers give them.

Only names and layouts change here; the values stay in the mapped file. Knows no modules.
Source: Comfy-Org/ComfyUI, comfy/utils.py (transformers_convert), comfy/sd.py
(load_text_encoder_state_dicts); black-forest-labs/flux, src/flux/modules/autoencoder.py for the autoencoder's names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from hidream.formats.quantized import StoredTensor

PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
    "text_encoders.clip_l.transformer.",
    "text_encoders.clip_g.transformer.",
    "text_encoders.t5xxl.transformer.",
    "text_encoders.llama.transformer.",
    "first_stage_model.",
    "vae.",
)
"""Prefixes of all names in files that were extracted from, or saved as, a complete checkpoint."""


def without_prefix(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Remove the prefix that all names have."""
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def clip_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """CLIP's text side in the names of transformers, also from OpenCLIP's (`transformer.resblocks.0.ln_1.weight`)."""
    tensors = {_renamed(OPEN_CLIP, name): tensor for name, tensor in tensors.items()}
    named: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if name in CLIP_IGNORED or name.endswith("position_ids"):
            continue
        layer, packed, kind = name.partition(".attn.in_proj_")
        if packed and isinstance(tensor, Tensor):
            for side, part in zip("qkv", tensor.chunk(3), strict=True):
                named[f"{layer}.self_attn.{side}_proj.{kind}"] = part
        elif name == "text_projection" and isinstance(tensor, Tensor):
            named["text_projection.weight"] = tensor.transpose(
                0, 1
            ).contiguous()  # OpenCLIP multiplies from the other side
        else:
            named[name] = tensor
    return named


def t5_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """T5's encoder: the embedding under one name, without decoder, head and the tokenizer that some files carry."""
    named = {name: tensor for name, tensor in tensors.items() if name.startswith(("encoder.", "shared."))}
    embedding = named.pop("encoder.embed_tokens.weight", None)
    if embedding is not None:
        named.setdefault("shared.weight", embedding)
    return named


def llama_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Llama without its language head, and without the `model.` that files with a head have."""
    left_out = ("lm_head.", "tekken_model", "tokenizer")
    return {
        name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if not name.startswith(left_out) and not name.endswith("rotary_emb.inv_freq")
    }


def autoencoder_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """FLUX's autoencoder in the names of diffusers; one that has them already stays as it is."""
    levels = {match[1] for name in tensors if (match := re.match(r"decoder\.up\.(\d+)\.", name))}
    if not levels:
        return dict(tensors)
    named: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        new = replaced(AUTOENCODER, with_reversed_level(name, len(levels)))
        is_product = ".attentions." in new and isinstance(tensor, Tensor) and tensor.dim() == 4
        named[new] = tensor.flatten(1) if is_product and isinstance(tensor, Tensor) else tensor
    return named


def replaced(pieces: Sequence[tuple[str, str]], name: str) -> str:
    """Replace each first piece of a pair in a name by the second."""
    for piece, other in pieces:
        name = name.replace(piece, other)
    return name


def with_reversed_level(name: str, levels: int) -> str:
    """Reverse the number of a level in a name of the decoder: FLUX and diffusers count the levels in opposite order."""
    return re.sub(r"^(decoder\.up(?:_blocks)?\.)(\d+)", lambda found: f"{found[1]}{levels - 1 - int(found[2])}", name)


CLIP_IGNORED = ("logit_scale", "attn_mask")
OPEN_CLIP = (
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
)
"""OpenCLIP's names to those of transformers, which none of these match."""
AUTOENCODER = (
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.norm.", ".mid_block.attentions.0.group_norm."),
    (".mid.attn_1.q.", ".mid_block.attentions.0.to_q."),
    (".mid.attn_1.k.", ".mid_block.attentions.0.to_k."),
    (".mid.attn_1.v.", ".mid_block.attentions.0.to_v."),
    (".mid.attn_1.proj_out.", ".mid_block.attentions.0.to_out.0."),
    ("encoder.down.", "encoder.down_blocks."),
    ("decoder.up.", "decoder.up_blocks."),
    (".block.", ".resnets."),
    (".downsample.", ".downsamplers.0."),
    (".upsample.", ".upsamplers.0."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".norm_out.", ".conv_norm_out."),
)
"""Pieces of FLUX's names and diffusers' for them; `rename.py` goes the way back.

In this order both ways: the middle's own names come before those of the levels, of which they would look like one.
"""


def _renamed(rules: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
