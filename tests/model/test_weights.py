"""Checkpoint folders: parts, shards, errors that say what is wrong, and a name for their content."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from hidream.errors import CheckpointError
from hidream.model import weights
from hidream.model.pipeline import load
from hidream.model.weights import Checkpoint, embedded, load_transformer
from hidream.types import Variant

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder, written by diffusers, with only a transformer in it."""
    model = tiny.reference()
    model.save_pretrained(tmp_path / "transformer")
    return tmp_path


def test_loads_what_diffusers_wrote(folder):
    x = tiny.inputs(1, 8, 8)
    model = load_transformer(Checkpoint(folder), CPU, torch.float32)
    assert tiny.relative(model(*x), -tiny.reference()(*x, return_dict=False)[0]) <= 1e-5


def test_loads_shards(folder):
    whole = load_transformer(Checkpoint(folder), CPU, torch.float32)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    file.unlink()
    save_torch_state_dict(
        state,
        folder / "transformer",
        filename_pattern="diffusion_pytorch_model{suffix}.safetensors",
        max_shard_size="1MB",
    )
    assert len(weights.safetensors_files(folder / "transformer")) > 2
    sharded = load_transformer(Checkpoint(folder), CPU, torch.float32)
    x = tiny.inputs(1, 8, 8)
    assert tiny.relative(sharded(*x), whole(*x)) <= 1e-6  # not bit for bit: the shards' tensors lie at other addresses

    next((folder / "transformer").glob("*-00002-*")).unlink()
    with pytest.raises(CheckpointError, match=r"lacks .*00002"):
        load_transformer(Checkpoint(folder), CPU, torch.float32)


@pytest.mark.parametrize("change", ["missing", "unexpected", "of another shape"])
def test_wrong_keys_are_named(folder, change):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    name = "final_layer.linear.weight"
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        name = "somebody.else.weight"
        state[name] = torch.zeros(1)
    else:
        state[name] = torch.zeros(3, 3)
    save_file(state, file)
    with pytest.raises(CheckpointError, match=f"1 {change} .{name}"):
        load_transformer(Checkpoint(folder), CPU, torch.float32)


def test_a_broken_file_is_named(folder):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model.safetensors cannot be read"):
        load_transformer(Checkpoint(folder), CPU, torch.float32)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("_class_name", "FluxTransformer2DModel", "Flux"),
        ("llama_layers", [0], "llama_layers"),
        ("axes_dims_rope", [8, 8], "axes_dims_rope"),
    ],
)
def test_another_architecture_is_named(folder, key, value, message):
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=message):
        load_transformer(Checkpoint(folder), CPU, torch.float32)


def test_llama_may_lie_elsewhere(tmp_path):
    nano = embedded(Variant.DEV).folder
    shutil.copytree(nano, tmp_path / "model")
    llama = tmp_path / "llama"
    shutil.copytree(tmp_path / "model" / "text_encoder_4", llama)
    shutil.copytree(tmp_path / "model" / "tokenizer_4", llama, dirs_exist_ok=True)
    for part in ("text_encoder_4", "tokenizer_4"):
        shutil.rmtree(tmp_path / "model" / part)
    with pytest.raises(CheckpointError, match=r"Llama-3.1-8B-Instruct: download"):
        load(Variant.DEV, tmp_path / "model")
    with pytest.raises(CheckpointError, match="does not exist"):
        load(Variant.DEV, tmp_path / "model", llama=tmp_path / "nowhere")
    model = load(Variant.DEV, tmp_path / "model", llama=llama)
    assert torch.equal(model.text.encode(["a cat"]).llama, load(Variant.DEV).text.encode(["a cat"]).llama)


def test_hash_follows_the_content(tmp_path):
    cache, file = tmp_path / "cache" / "hashes.json", tmp_path / "w.safetensors"
    file.write_bytes(b"one")
    first = weights.weights_hash([file], cache)
    assert weights.weights_hash([file], None) == weights.weights_hash([file], cache) == first
    file.write_bytes(b"other")
    assert weights.weights_hash([file], cache) != first
    cache.write_text("{ torn")
    assert weights.weights_hash([file], cache) == weights.weights_hash([file], None)
