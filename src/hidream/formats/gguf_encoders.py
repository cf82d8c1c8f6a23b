"""T5 and Llama from llama.cpp's GGUF files, with the names, the order of rows and the configuration of transformers.

llama.cpp rotates pairs of neighbouring channels, and transformers rotates the first half of a head with the second. So
the rows of Llama's queries and keys are in another order. Blocks of quantised values lie along a row, so whole rows can
be moved without decoding. That copies these matrices, a twelfth of Llama-3.1-8B; all others stay in the mapped file.

Source: ggml-org/llama.cpp, convert_hf_to_gguf.py (LlamaModel, T5EncoderModel), gguf-py's constants.py; ggml's rope with
`rope_freqs` divides each frequency by the table's number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hidream.formats.quantized import Quantized, StoredTensor

T5, LLAMA = ("t5", "t5encoder"), "llama"
ARCHITECTURES = (*T5, LLAMA)
"""What `general.architecture` says of each."""

T5_NAMES = (
    (r"^token_embd\.", "shared."),
    (r"^enc\.output_norm\.", "encoder.final_layer_norm."),
    (r"^enc\.blk\.", "encoder.block."),
    (r"\.attn_rel_b\.", ".layer.0.SelfAttention.relative_attention_bias."),
    (r"\.attn_norm\.", ".layer.0.layer_norm."),
    (r"\.attn_([qkvo])\.", r".layer.0.SelfAttention.\1."),
    (r"\.ffn_norm\.", ".layer.1.layer_norm."),
    (r"\.ffn_gate\.", ".layer.1.DenseReluDense.wi_0."),
    (r"\.ffn_up\.", ".layer.1.DenseReluDense.wi_1."),
    (r"\.ffn_down\.", ".layer.1.DenseReluDense.wo."),
)
LLAMA_NAMES = (
    (r"^token_embd\.", "model.embed_tokens."),
    (r"^output_norm\.", "model.norm."),
    (r"^output\.", "lm_head."),
    (r"^blk\.", "model.layers."),
    (r"\.attn_norm\.", ".input_layernorm."),
    (r"\.attn_([qkv])\.", r".self_attn.\1_proj."),
    (r"\.attn_output\.", ".self_attn.o_proj."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.ffn_(gate|up|down)\.", r".mlp.\1_proj."),
)
HEADS, KEY_HEADS = "llama.attention.head_count", "llama.attention.head_count_kv"
ROPE_FACTORS = "rope_freqs.weight"
"""By what each of Llama's frequencies is divided."""

HEAD_DIM_MAX = 4096
T5_MAX_DISTANCE = 128
"""Of T5's relative positions (t5-v1_1-xxl, config.json)."""
LLAMA_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Llama-3.1-8B-Instruct, config.json: rope_scaling and rope_theta."""


def renamed(
    architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The tensors of an encoder as transformers has them. Raises KeyError, TypeError, ValueError on wrong numbers."""
    rules = LLAMA_NAMES if architecture == LLAMA else T5_NAMES
    named = {_renamed(rules, name): tensor for name, tensor in tensors.items() if name != ROPE_FACTORS}
    if architecture == LLAMA:
        heads = {"q": _int(metadata, HEADS), "k": _key_heads(metadata)}
        for name, tensor in named.items():
            match = re.search(r"\.self_attn\.([qk])_proj\.(weight|bias)$", name)
            if match:
                named[name] = _halves(tensor, heads[match[1]])
    return named


def config(architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """`config.json` of an encoder. Raises as `renamed` does."""
    return _llama(metadata, tensors) if architecture == LLAMA else _t5(architecture, metadata, tensors)


def _t5(architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    buckets, heads = _size(tensors, "enc.blk.0.attn_rel_b.weight")
    vocabulary, width = _size(tensors, "token_embd.weight")
    return {
        "architectures": ["T5EncoderModel"],
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": _size(tensors, "enc.blk.0.attn_q.weight")[0] // heads,
        "d_ff": _size(tensors, "enc.blk.0.ffn_up.weight")[0],
        "num_layers": _int(metadata, f"{architecture}.block_count"),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": T5_MAX_DISTANCE,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": _float(metadata, f"{architecture}.attention.layer_norm_rms_epsilon", 1e-6),
    }


def _llama(metadata: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    vocabulary, width = _size(tensors, "token_embd.weight")
    heads = _int(metadata, HEADS)
    head_dim, left = divmod(_size(tensors, "blk.0.attn_q.weight")[0], heads)
    if left:
        raise ValueError(f"{HEADS} is {heads}, of which blk.0.attn_q.weight has no whole number of rows")
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _size(tensors, "blk.0.ffn_up.weight")[0],
        "num_hidden_layers": _int(metadata, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _key_heads(metadata),
        "head_dim": head_dim,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "max_position_embeddings": _int(metadata, "llama.context_length"),
        "rms_norm_eps": _float(metadata, "llama.attention.layer_norm_rms_epsilon", 1e-5),
        "rope_parameters": _rope(metadata, tensors.get(ROPE_FACTORS), head_dim),
    }


def _rope(metadata: Mapping[str, Any], table: StoredTensor | None, head_dim: int) -> dict[str, Any]:
    """Llama's rotation in transformers' words: plain, linear, Llama-3.1's own, or with a factor for each frequency."""
    base = _float(metadata, "llama.rope.freq_base", 10000.0)
    turned = metadata.get("llama.rope.dimension_count", head_dim)
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if turned != head_dim or scaling not in ("none", "linear"):
        raise ValueError(
            f"it turns {turned!s:.50} of {head_dim} channels of a head, scaled by {scaling!r:.50}; "
            f"accepted: all of them, scaled by 'none', 'linear' or a table {ROPE_FACTORS}"
        )
    if scaling == "linear":
        return {"rope_type": "linear", "rope_theta": base, "factor": _float(metadata, "llama.rope.scaling.factor", 1.0)}
    context = _int(metadata, "llama.context_length")
    if not isinstance(table, Tensor):  # files of Llama 3.1 from before llama.cpp wrote the table, in July 2024
        is_published = base == LLAMA_ROPE["rope_theta"] and context > 8192
        return dict(LLAMA_ROPE) if is_published else {"rope_type": "default", "rope_theta": base}
    if head_dim > HEAD_DIM_MAX or table.shape != (head_dim // 2,):
        raise ValueError(f"{ROPE_FACTORS} is {list(table.shape)}; accepted: half of a head's {head_dim} channels")
    factors = [float(factor) for factor in table]
    published = {**LLAMA_ROPE, "rope_theta": base, "factor": max(factors)}
    own = _llama3_factors(published, head_dim)
    if len(own) == len(factors) and all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(own, factors, strict=True)):
        return published
    return {
        "rope_type": "longrope",
        "rope_theta": base,
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }


def _llama3_factors(rope: Mapping[str, Any], head_dim: int) -> Sequence[float]:
    """By what Llama-3.1's rotation divides its frequencies (transformers, `_compute_llama3_parameters`)."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    waves = [2 * math.pi * rope["rope_theta"] ** (i / head_dim) for i in range(0, head_dim, 2)]
    turns = [rope["original_max_position_embeddings"] / wave for wave in waves]
    smooth = [min(max((turn - low) / (high - low), 0.0), 1.0) for turn in turns]
    return [1 / ((1 - s) / factor + s) for s in smooth]


def _halves(value: StoredTensor, heads: int) -> StoredTensor:
    """Rows of pairs side by side, as llama.cpp has them, to all firsts of a head and then all seconds."""
    rows = torch.arange(value.shape[0]).view(heads, -1, 2).mT.flatten()
    if isinstance(value, Tensor):
        return value[rows]
    data = value.parts["data"].view(value.shape[0], -1)
    return Quantized(value.scheme, {**value.parts, "data": data[rows]}, value.shape)


def _renamed(rules: Sequence[tuple[str, str]], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _size(tensors: Mapping[str, StoredTensor], name: str) -> tuple[int, int]:
    shape = tensors[name].shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} has the shape {list(shape)}, not two dimensions")
    return shape[0], shape[1]


def _key_heads(metadata: Mapping[str, Any]) -> int:
    return _int(metadata, KEY_HEADS if KEY_HEADS in metadata else HEADS)


def _int(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata[key]
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} is {value!r:.50}")
    return value


def _float(metadata: Mapping[str, Any], key: str, default: float) -> float:
    value = float(metadata.get(key, default))
    if not value > 0 or math.isinf(value):
        raise ValueError(f"{key} is {value!r:.50}")
    return float(f"{value:.7g}")  # as it was before it became a float32
