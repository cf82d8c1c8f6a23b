"""llama.cpp's encoders: the order of queries and keys, the names by the package's own map, and the configuration."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter

import llama_cpp
from hidream.errors import CheckpointError
from hidream.formats.detect import config_of, read
from hidream.formats.gguf_encoders import LLAMA_ROPE, renamed
from hidream.formats.gguf_file import open_gguf
from hidream.formats.quantized import Quantized, from_blocks
from hidream.parts import Kind

HEADS = {"llama.attention.head_count": 4, "llama.attention.head_count_kv": 2}
WIDE = {**LLAMA_ROPE, "original_max_position_embeddings": 64}


def llama(rope=LLAMA_ROPE, **changes):
    torch.manual_seed(0)
    numbers = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_parameters": dict(rope),
    }
    return transformers.LlamaModel(transformers.LlamaConfig(**{**numbers, **changes})).eval()


def t5():
    torch.manual_seed(0)
    numbers = {"vocab_size": 96, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    return transformers.T5EncoderModel(
        transformers.T5Config(**numbers, feed_forward_proj="gated-gelu", layer_norm_epsilon=1e-5)
    ).eval()


def dense(value):
    return value.dense(torch.float32) if isinstance(value, Quantized) else value


@pytest.mark.parametrize("architecture", ["t5", "t5encoder", "llama"])
@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
def test_every_tensor_comes_back_under_transformers_own_name(tmp_path, architecture, kind):
    model = llama() if architecture == "llama" else t5()
    path = llama_cpp.write(tmp_path / "a.gguf", model, architecture, kind)
    published = read(path)
    assert published.kind is (Kind.LLAMA if architecture == "llama" else Kind.T5)
    expected = {
        k: v for k, v in llama_cpp.rounded(model, kind).state_dict().items() if k != "encoder.embed_tokens.weight"
    }
    assert published.tensors.keys() == expected.keys()
    assert all(torch.equal(dense(published.tensors[name]), tensor) for name, tensor in expected.items())
    name = (
        "layers.0.self_attn.q_proj.weight"
        if architecture == "llama"
        else "encoder.block.0.layer.0.SelfAttention.q.weight"
    )
    assert isinstance(published.tensors[name], Quantized) is (kind != "F32")


def test_rows_of_any_block_type_are_put_back():
    """Types that the package cannot write too: blocks lie along a row."""
    generator = np.random.default_rng(0)
    for kind, row in (("Q6_K", 210), ("Q4_K", 144), ("IQ4_XS", 136), ("Q8_0", 34 * 8)):
        blocks = torch.from_numpy(generator.integers(0, 100, (64, row), dtype=np.uint8))
        theirs = torch.from_numpy(gguf.dequantize(blocks.numpy(), GGMLQuantizationType[kind]))
        for side, heads in (("q", 4), ("k", 2)):
            value = from_blocks(kind, blocks, torch.Size([64, 256]))
            ours = renamed("llama", HEADS, {f"blk.0.attn_{side}.weight": value})[
                f"model.layers.0.self_attn.{side}_proj.weight"
            ]
            assert torch.equal(llama_cpp.permuted(dense(ours), heads), theirs)


def test_what_llama_cpp_turns_in_pairs_transformers_turns_in_halves():
    """The maths of both: the same products of queries and keys."""
    torch.manual_seed(0)
    width, heads, positions = 16, 2, torch.arange(5.0)
    x, q = torch.randn(5, 32), torch.randn(heads * width, 32)
    angles = positions[:, None] / 10000 ** (torch.arange(0, width, 2) / width)  # [positions, width / 2]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]

    pairs = (x @ q.T).view(5, heads, width // 2, 2)  # a file of llama.cpp, as ggml turns it
    first, second = pairs.unbind(-1)
    theirs = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1).flatten(2)

    metadata = {"llama.attention.head_count": heads}
    ours = renamed("llama", metadata, {"blk.0.attn_q.weight": q})["model.layers.0.self_attn.q_proj.weight"]
    first, second = (x @ ours.T).view(5, heads, width).chunk(2, dim=-1)  # transformers' rotate_half
    halves = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    assert torch.allclose(theirs @ theirs.mT, halves @ halves.mT, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_the_numbers_of_a_llama(tmp_path, bias):
    model = llama(attention_bias=bias)
    stated = config_of(llama_cpp.write(tmp_path / "a.gguf", model, "llama"))
    own = model.config.to_dict()
    assert {key: own[key] for key in stated if key not in ("architectures", "rope_parameters")} == {
        key: value for key, value in stated.items() if key not in ("architectures", "rope_parameters")
    }
    assert stated["rope_parameters"] == LLAMA_ROPE
    assert stated["architectures"] == ["LlamaForCausalLM"]


def test_the_numbers_of_a_t5(tmp_path):
    model = t5()
    stated = config_of(llama_cpp.write(tmp_path / "a.gguf", model, "t5encoder"))
    own = model.config.to_dict()
    assert {key: own[key] for key in stated if key != "architectures"} == {
        key: value for key, value in stated.items() if key != "architectures"
    }


@pytest.mark.parametrize(
    ("model", "stated", "expected"),
    [
        ({"rope_type": "default", "rope_theta": 10000.0}, {}, {"rope_type": "default", "rope_theta": 10000.0}),
        ({"rope_type": "default", "rope_theta": 1e6}, {}, {"rope_type": "default", "rope_theta": 1e6}),
        (
            {"rope_type": "default", "rope_theta": 1e4},
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        ),
        (LLAMA_ROPE, {}, LLAMA_ROPE),
        ({**LLAMA_ROPE, "factor": 32.0}, {}, {**LLAMA_ROPE, "factor": 32.0}),  # Llama 3.2
        # Llama 3.1 as it was written before there was a table
        ({"rope_type": "default", "rope_theta": 500000.0}, {"context_length": 131072}, LLAMA_ROPE),
    ],
)
def test_rotations(tmp_path, model, stated, expected):
    path = llama_cpp.write(tmp_path / "a.gguf", llama(model), "llama", **stated)
    assert config_of(path)["rope_parameters"] == expected


def test_a_table_of_factors_that_is_not_the_published_one_is_kept_as_it_is(tmp_path):
    model = llama(WIDE, head_dim=32, hidden_size=128)
    rope = config_of(llama_cpp.write(tmp_path / "a.gguf", model, "llama"))["rope_parameters"]
    assert rope["rope_type"] == "longrope"
    assert rope["short_factor"] == rope["long_factor"]
    config = transformers.LlamaConfig(**{**model.config.to_dict(), "rope_parameters": rope})
    ours = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config).inv_freq
    assert torch.allclose(ours, model.rotary_emb.inv_freq, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"attention.head_count": None}, r"lacks llama.attention.head_count; accepted: a complete llama of llama.cpp"),
        ({"block_count": None}, "lacks llama.block_count"),
        ({"attention.head_count": [4, 4]}, "head_count is .4, 4."),
        ({"attention.head_count": 0}, "head_count is 0"),
        ({"attention.head_count": 7}, "is not a readable llama of llama.cpp: .*head_count is 7, of which"),
        ({"rope.freq_base": -1.0}, "freq_base is -1"),
        ({"rope.dimension_count": 8}, "turns 8 of 16 channels"),
        ({"rope.scaling.type": "yarn"}, "scaled by 'yarn'; accepted: all of them, scaled by 'none', 'linear'"),
    ],
)
def test_numbers_that_are_missing_or_wrong_are_named(tmp_path, stated, message):
    path = llama_cpp.write(tmp_path / "a.gguf", llama({"rope_type": "default", "rope_theta": 1e4}), "llama", **stated)
    with pytest.raises(CheckpointError, match=message):
        open_gguf(path)


def test_a_missing_tensor_is_named(tmp_path):
    writer = GGUFWriter(tmp_path / "a.gguf", "t5encoder")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), dtype=np.float32))
    close(writer)
    with pytest.raises(CheckpointError, match=r"lacks enc.blk.0.attn_rel_b.weight; accepted: a complete t5encoder"):
        open_gguf(tmp_path / "a.gguf")


@pytest.mark.parametrize("architecture", ["pig", "cow"])
@pytest.mark.parametrize("kind", [Kind.CLIP, Kind.T5, Kind.LLAMA, Kind.VAE])
def test_parts_that_kept_their_names_are_read_from_files_that_do_not_say_what_they_are(tmp_path, architecture, kind):
    names = {
        Kind.CLIP: "text_model.encoder.layers.0.mlp.fc1.weight",
        Kind.T5: "encoder.block.0.layer.0.SelfAttention.q.weight",
        Kind.LLAMA: "model.layers.0.self_attn.q_proj.weight",
        Kind.VAE: "decoder.conv_in.weight",
    }
    writer = GGUFWriter(tmp_path / "a.gguf", architecture)
    writer.add_tensor(names[kind], np.ones((4, 8), dtype=np.float32))
    close(writer)
    published = read(tmp_path / "a.gguf")
    assert published.kind is kind
    assert config_of(tmp_path / "a.gguf") is None
    assert [tensor.shape for tensor in published.tensors.values()] == [torch.Size([4, 8])]


def test_a_file_of_a_split_model_is_named(tmp_path):
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint16("split.count", 2)
    close(writer)
    with pytest.raises(CheckpointError, match=r"a.gguf is one of several files of a model; accepted: one merged file"):
        open_gguf(tmp_path / "a.gguf")


def test_what_is_said_of_an_encoder_is_json(tmp_path):
    path: Path = llama_cpp.write(tmp_path / "a.gguf", t5(), "t5")
    opened = open_gguf(path)
    assert opened.architecture == "t5"
    assert json.loads(opened.metadata["config"])["architectures"] == ["T5EncoderModel"]


def close(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
