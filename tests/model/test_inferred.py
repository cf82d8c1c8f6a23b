"""Configurations that are inferred from shapes equal the published ones, on modules of the real size without memory."""

from __future__ import annotations

import copy
import re

import diffusers
import pytest
import torch
import transformers

from hidream.errors import CheckpointError
from hidream.formats.comfy import t5_names
from hidream.model.checkpoint.inferred import (
    autoencoder_config,
    clip_config,
    llama_config,
    t5_config,
    transformer_config,
)
from hidream.model.network.config import TransformerConfig
from hidream.model.network.transformer import Transformer

LLAMA = {  # config.json of Llama-3.1-8B-Instruct
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
T5 = {  # config.json of google/t5-v1_1-xxl
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-06,
    "num_heads": 64,
    "num_layers": 24,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}
CLIPS = [  # openai/clip-vit-large-patch14 and laion/CLIP-ViT-bigG-14, with HiDream's positions
    {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"},
    {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu"},
]


def shapes_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in module.state_dict().items()}


def on_meta(build):
    with torch.device("meta"):
        return build()


def test_transformer():
    shapes = shapes_of(on_meta(lambda: Transformer(TransformerConfig())))
    assert transformer_config(shapes) == TransformerConfig()
    del shapes["x_embedder.proj.weight"]
    with pytest.raises(CheckpointError, match=r"key x_embedder.proj.weight is missing"):
        transformer_config(shapes)


@pytest.mark.parametrize("values", CLIPS)
def test_clip(values):
    width = values["hidden_size"]
    config = transformers.CLIPTextConfig(
        **values, intermediate_size=4 * width, projection_dim=width, max_position_embeddings=248
    )
    shapes = shapes_of(on_meta(lambda: transformers.CLIPTextModelWithProjection(config)))
    assert differences(transformers.CLIPTextConfig.from_dict(clip_config(shapes)), config) == {}


def test_t5():
    config = transformers.T5Config(**T5)
    shapes = t5_names(shapes_of(on_meta(lambda: transformers.T5EncoderModel(copy.deepcopy(config)))))
    ours = transformers.T5Config.from_dict(t5_config(shapes))
    assert differences(ours, config) == {}


def test_llama():
    config = transformers.LlamaConfig.from_dict(LLAMA)
    shapes = shapes_of(on_meta(lambda: transformers.LlamaModel(config)))
    ours = transformers.LlamaConfig.from_dict(llama_config(shapes))
    assert differences(ours, config) == {}
    assert ours.rope_parameters == config.rope_parameters


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [("embed_tokens.weight", (128320, 4096), "128320"), ("embed_tokens.weight", (128256, 3072), "3072")],
)
def test_another_llama_is_named(key, shape, message):
    shapes = shapes_of(on_meta(lambda: transformers.LlamaModel(transformers.LlamaConfig.from_dict(LLAMA))))
    with pytest.raises(CheckpointError, match=f"{message}.*Llama-3.1-8B-Instruct"):
        llama_config(shapes | {key: torch.Size(shape)})


def test_autoencoder():
    flux = {  # vae/config.json of FLUX.1 and HiDream-I1
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 16,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "mid_block_add_attention": True,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    }
    shapes = shapes_of(on_meta(lambda: diffusers.AutoencoderKL(**flux)))
    assert autoencoder_config(shapes) == {"_class_name": "AutoencoderKL"} | flux
    with pytest.raises(CheckpointError, match="4 latent channels like that of SD or SDXL"):
        autoencoder_config(shapes | {"decoder.conv_in.weight": torch.Size((512, 4, 3, 3))})


@pytest.mark.parametrize("infer", [clip_config, t5_config, llama_config, autoencoder_config])
def test_a_missing_key_is_named(infer):
    with pytest.raises(CheckpointError, match=re.escape("so the model's size is unknown")):
        infer({})


def differences(ours, theirs):
    """What a configuration says otherwise, but for what no computation reads."""
    passed_over = {"architectures", "eos_token_id", "bos_token_id", "pad_token_id", "num_decoder_layers"}
    mine, other = ours.to_dict(), theirs.to_dict()
    return {key: (mine.get(key), other[key]) for key in other.keys() - passed_over if mine.get(key) != other[key]}
