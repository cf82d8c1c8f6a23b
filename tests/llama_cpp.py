"""Writes encoders as llama.cpp's converter does: names from the `gguf` package's own map, rows of q and k permuted.

After ggml-org/llama.cpp, convert_hf_to_gguf.py: LlamaModel and T5EncoderModel, in our own words.
"""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter
from torch import Tensor, nn

ARCHES = {"llama": MODEL_ARCH.LLAMA, "t5": MODEL_ARCH.T5, "t5encoder": MODEL_ARCH.T5ENCODER}


def permuted(weight: Tensor, heads: int) -> Tensor:
    """Each head's two halves interleaved."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def rope_factors(rope: dict) -> Tensor:
    """By what ggml divides each frequency of a Llama 3.1."""
    freqs = 1.0 / (rope["rope_theta"] ** (torch.arange(0, rope["head_dim"], 2, dtype=torch.float32) / rope["head_dim"]))
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for freq in freqs:
        wave = 2 * math.pi / freq
        if wave < high:
            factors.append(1.0)
        elif wave > low:
            factors.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / wave - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return torch.tensor(factors, dtype=torch.float32)


def write(path: Path, model: nn.Module, architecture: str, kind: str = "F32", **stated: object) -> Path:
    """One module of transformers. `stated` replaces what is written of its numbers; None leaves it out."""
    config = model.config
    blocks = config.num_layers if architecture.startswith("t5") else config.num_hidden_layers
    writer = GGUFWriter(path, architecture)
    for key, value in ({**_numbers(config, architecture), **stated}).items():
        if value is None:
            continue
        name = f"{architecture}.{key}"
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](name, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token {i}" for i in range(50)])
    names = gguf.get_tensor_name_map(ARCHES[architecture], blocks)
    for key, value in _tensors(model, architecture).items():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert name, key
        _add(writer, name, value, kind)
    rope = getattr(config, "rope_parameters", None)
    if rope and rope["rope_type"] == "llama3":
        _add(writer, "rope_freqs.weight", rope_factors({**rope, "head_dim": config.head_dim}), "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(model: nn.Module, kind: str) -> nn.Module:
    """The same module with the values that a file of this type stands for."""
    with torch.no_grad():
        for parameter in model.parameters():
            if _is_quantised(parameter, kind):
                packed = gguf.quantize(parameter.numpy(), GGMLQuantizationType[kind])
                parameter.copy_(torch.from_numpy(gguf.dequantize(packed, GGMLQuantizationType[kind])))
    return model


def _numbers(config: object, architecture: str) -> dict[str, object]:
    if architecture == "llama":
        return {
            "block_count": config.num_hidden_layers,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            "rope.freq_base": float(config.rope_parameters["rope_theta"]),
            "rope.dimension_count": config.head_dim,
        }
    return {
        "block_count": config.num_layers,
        "context_length": 512,
        "embedding_length": config.d_model,
        "feed_forward_length": config.d_ff,
        "attention.head_count": config.num_heads,
        "attention.key_length": config.d_kv,
        "attention.relative_buckets_count": config.relative_attention_num_buckets,
        "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
    }


def _tensors(model: nn.Module, architecture: str) -> dict[str, Tensor]:
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if "embed_tokens" not in name}
    if architecture.startswith("t5"):
        return state
    state = {f"model.{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"] + 1  # which HiDream-I1 has no use for
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, tensor in state.items():
        layer = name.split(".")[-2]
        state[name] = permuted(tensor, heads[layer]) if layer in heads else tensor
    return state


def _add(writer: GGUFWriter, name: str, value: Tensor, kind: str) -> None:
    array = value.float().numpy()
    if _is_quantised(value, kind):
        writer.add_tensor(name, gguf.quantize(array, GGMLQuantizationType[kind]), raw_dtype=GGMLQuantizationType[kind])
    else:
        writer.add_tensor(name, array)


def _is_quantised(value: Tensor, kind: str) -> bool:
    return kind != "F32" and value.dim() == 2 and value.shape[1] % 32 == 0
