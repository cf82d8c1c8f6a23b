"""Infers the configuration of a part whose file has none, from the shapes of its tensors and published constants.

ComfyUI's single files and GGUF files come without configuration. What shapes do not show (heads, activations, rotary
frequencies) is taken from the published configurations, and only if the width is the published one: with a wrong guess,
the model would generate noise without any error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Size

from hidream.errors import CheckpointError
from hidream.formats.gguf_encoders import LLAMA_ROPE, T5_MAX_DISTANCE
from hidream.model.network.config import TransformerConfig
from hidream.parts import CLIP_G, CLIP_L, Kind

Shapes = Mapping[str, Size]
"""Shape of each tensor by its name."""

DIM = 2560
"""Width of HiDream-I1 (transformer/config.json: 20 heads of 128 channels)."""
CLIP_ACTIVATIONS = {CLIP_L.width: "quick_gelu", CLIP_G.width: "gelu"}
"""Activations of CLIP-L and CLIP-G by width (ComfyUI, comfy/sd1_clip_config.json and clip_config_bigg.json)."""
CLIP_HEAD_DIM = 64
LLAMA_VOCABULARY, LLAMA_WIDTH, LLAMA_HEAD_DIM = 128256, 4096, 128
LLAMA_MAX_POSITIONS = 131072
FLUX_SCALING, FLUX_SHIFT = 0.3611, 0.1159
"""FLUX.1's autoencoder (vae/config.json of HiDream-I1 and of FLUX.1)."""
FLUX_LATENT_CHANNELS = 16
VAE_GROUPS = 32


def transformer_config(shapes: Shapes) -> TransformerConfig:
    """Numbers of a HiDream-I1 transformer. Raises CheckpointError when it is not of the published width."""
    dim, patch = _shape(shapes, "x_embedder.proj.weight")
    if dim != DIM:
        raise CheckpointError(
            f"the transformer is {dim} wide, and its file does not say how many heads it has; "
            f"accepted: {DIM} as published, or a config.json beside the file"
        )
    size = TransformerConfig().patch_size
    blocks = count(shapes, "double_stream_blocks"), count(shapes, "single_stream_blocks")
    config = TransformerConfig(
        in_channels=patch // size**2,
        out_channels=_shape(shapes, "final_layer.linear.weight")[0] // size**2,
        num_layers=blocks[0],
        num_single_layers=blocks[1],
        caption_channels=(
            _shape(shapes, f"caption_projection.{sum(blocks)}.linear.weight")[1],
            _shape(shapes, "caption_projection.0.linear.weight")[1],
        ),
        text_emb_dim=_shape(shapes, "p_embedder.pooled_embedder.linear_1.weight")[1],
        num_routed_experts=count(shapes, "double_stream_blocks.0.block.ff_i.experts"),
    )
    config.check()
    return config


def clip_config(shapes: Shapes) -> dict[str, Any]:
    """`text_encoder/config.json` or `text_encoder_2/config.json`, by the width."""
    vocabulary, width = _shape(shapes, "text_model.embeddings.token_embedding.weight")
    if width not in CLIP_ACTIVATIONS:
        raise CheckpointError(f"the CLIP is {width} wide; accepted: 768 (clip_l_hidream) or 1280 (clip_g_hidream)")
    return {
        "architectures": ["CLIPTextModelWithProjection"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _shape(shapes, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "projection_dim": _shape(shapes, "text_projection.weight")[0],
        "num_hidden_layers": count(shapes, "text_model.encoder.layers"),
        "num_attention_heads": width // CLIP_HEAD_DIM,
        "max_position_embeddings": _shape(shapes, "text_model.embeddings.position_embedding.weight")[0],
        "hidden_act": CLIP_ACTIVATIONS[width],
        "eos_token_id": vocabulary - 1,  # CLIP's last token, 49407, at whose place the text is pooled
    }


def t5_config(shapes: Shapes) -> dict[str, Any]:
    """`text_encoder_3/config.json`: a T5 v1.1 encoder."""
    block = "encoder.block.0.layer"
    vocabulary, width = _shape(shapes, "shared.weight")
    buckets, heads = _shape(shapes, f"{block}.0.SelfAttention.relative_attention_bias.weight")
    return {
        "architectures": ["T5EncoderModel"],
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": _shape(shapes, f"{block}.0.SelfAttention.q.weight")[0] // heads,
        "d_ff": _shape(shapes, f"{block}.1.DenseReluDense.wi_0.weight")[0],
        "num_layers": count(shapes, "encoder.block"),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": T5_MAX_DISTANCE,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
    }


def llama_config(shapes: Shapes) -> dict[str, Any]:
    """`config.json` of Llama-3.1-8B-Instruct. Raises CheckpointError on another size or vocabulary."""
    vocabulary, width = _shape(shapes, "embed_tokens.weight")
    if (vocabulary, width) != (LLAMA_VOCABULARY, LLAMA_WIDTH):
        raise CheckpointError(
            f"the Llama has a vocabulary of {vocabulary} and is {width} wide; "
            f"accepted: Llama-3.1-8B-Instruct with {LLAMA_VOCABULARY} and {LLAMA_WIDTH}, or a folder with a config.json"
        )
    queries, keys = (_shape(shapes, f"layers.0.self_attn.{side}_proj.weight")[0] for side in "qk")
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _shape(shapes, "layers.0.mlp.gate_proj.weight")[0],
        "num_hidden_layers": count(shapes, "layers"),
        "num_attention_heads": queries // LLAMA_HEAD_DIM,
        "num_key_value_heads": keys // LLAMA_HEAD_DIM,
        "head_dim": LLAMA_HEAD_DIM,
        "max_position_embeddings": LLAMA_MAX_POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_parameters": LLAMA_ROPE,
    }


def autoencoder_config(shapes: Shapes) -> dict[str, Any]:
    """`vae/config.json`: FLUX's autoencoder. Raises CheckpointError on another number of latent channels."""
    latent = _shape(shapes, "decoder.conv_in.weight", 4)[1]
    if latent != FLUX_LATENT_CHANNELS:
        raise CheckpointError(
            f"the autoencoder has {latent} latent channels{' like that of SD or SDXL' * (latent == 4)}; "
            f"accepted: FLUX's (ae.safetensors) with {FLUX_LATENT_CHANNELS}"
        )
    levels = count(shapes, "encoder.down_blocks")
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [
            _shape(shapes, f"encoder.down_blocks.{level}.resnets.0.conv1.weight", 4)[0] for level in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": count(shapes, "encoder.down_blocks.0.resnets"),
        "latent_channels": latent,
        "norm_num_groups": VAE_GROUPS,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "scaling_factor": FLUX_SCALING,
        "shift_factor": FLUX_SHIFT,
    }


def published_config(kind: Kind, shapes: Shapes) -> dict[str, Any]:
    """`config.json` of a part whose file does not tell its numbers. Raises CheckpointError where its shapes do not."""
    if kind is Kind.TRANSFORMER:
        return {"_class_name": "HiDreamImageTransformer2DModel", **dataclasses.asdict(transformer_config(shapes))}
    infer = {Kind.CLIP: clip_config, Kind.T5: t5_config, Kind.LLAMA: llama_config, Kind.VAE: autoencoder_config}
    return infer[kind](shapes)


def count(names: Iterable[str], prefix: str) -> int:
    """How many numbered modules there are right below `prefix`."""
    numbered = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for name in names if (match := numbered.match(name))})


def _shape(shapes: Shapes, name: str, dims: int = 2) -> Size:
    if name not in shapes:
        raise CheckpointError(f"the key {name} is missing, so the model's size is unknown")
    if len(shapes[name]) != dims or 0 in shapes[name]:
        raise CheckpointError(
            f"the key {name} has the shape {list(shapes[name])}; accepted: {dims} dimensions, none empty"
        )
    return shapes[name]
