"""The content of a path decides what it is; anything else is an error; nothing is read before it is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hidream.errors import CheckpointError
from hidream.formats.detect import config_of, read
from hidream.formats.gguf_file import write_gguf
from hidream.parts import Kind

ONE = torch.ones(2, 2)
MARKS = {
    Kind.TRANSFORMER: "double_stream_blocks.0.block.ff_i.gate.weight",
    Kind.CLIP: "text_model.encoder.layers.0.mlp.fc1.weight",
    Kind.T5: "encoder.block.0.layer.0.SelfAttention.q.weight",
    Kind.LLAMA: "model.layers.0.self_attn.q_proj.weight",
    Kind.VAE: "decoder.up.0.block.0.conv1.weight",
}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("name", ["model.safetensors", "renamed.bin", "no suffix"])
def test_kinds_are_told_by_content(tmp_path, kind, name):
    save_file({MARKS[kind]: ONE}, tmp_path / name)
    assert read(tmp_path / name).kind is kind
    others = [other for other in Kind if other is not kind]
    with pytest.raises(CheckpointError, match=f"holds {kind}; accepted: {others[0]} or"):
        read(tmp_path / name, others)


def test_a_llama_without_a_head_is_one_too(tmp_path):
    save_file({MARKS[Kind.LLAMA].removeprefix("model."): ONE}, tmp_path / "llama")
    assert read(tmp_path / "llama").kind is Kind.LLAMA


def test_a_file_without_tensors_says_so(tmp_path):
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(CheckpointError, match=r"empty.safetensors holds no tensors; accepted: a HiDream-I1"):
        read(tmp_path / "empty.safetensors")


def test_gguf_is_told_by_content(tmp_path):
    tensors = {"caption_projection.0.linear.weight": ONE, MARKS[Kind.TRANSFORMER]: ONE}
    write_gguf(tmp_path / "model.safetensors", tensors, "F16")
    published = read(tmp_path / "model.safetensors")
    assert published.kind is Kind.TRANSFORMER
    assert published.tensors.keys() == tensors.keys()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("double_blocks.0.img_attn.norm.key_norm.scale", "FLUX"),
        ("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", "FLUX"),
        ("transformer.single_transformer_blocks.0.attn.to_q.weight", "FLUX"),
        ("model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias", "Stable Diffusion 3"),
        ("model.diffusion_model.label_emb.0.0.weight", "Stable Diffusion XL"),
        ("down_blocks.0.attentions.0.proj_in.weight", "Stable Diffusion UNet"),
        ("blocks.0.cross_attn.k.weight", "Wan"),
        ("diffusion_model.double_stream_blocks.0.block.attn1.to_q.lora_A.weight", "a LoRA"),
        ("lycoris_double_stream_blocks_0_block_attn1_to_q.lokr_w1", "a LoRA"),
        ("somebody.elses.weight", "unknown tensors .somebody.elses.weight"),
    ],
)
def test_foreign_files_are_named(tmp_path, key, message):
    save_file({key: ONE}, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=f"holds .*{message}.*; accepted: a HiDream-I1 transformer"):
        read(tmp_path / "file.safetensors", (Kind.TRANSFORMER,))


def test_a_whole_checkpoint_is_named(tmp_path):
    whole = {"model.diffusion_model." + MARKS[Kind.TRANSFORMER]: ONE, "vae.decoder.conv_in.weight": ONE.clone()}
    save_file(whole, tmp_path / "all.safetensors")
    with pytest.raises(CheckpointError, match="one by one"):
        read(tmp_path / "all.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_torn_files_are_named(tmp_path, kept):
    file = tmp_path / "torn.safetensors"
    save_file({MARKS[Kind.T5]: ONE}, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"torn.safetensors cannot be read.*download it again"):
        read(file)


def test_pickles_are_refused(tmp_path):
    for path, zipped in ((tmp_path / "a.safetensors", True), (tmp_path / "b.ckpt", False)):
        torch.save({MARKS[Kind.T5]: ONE}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match="is a PyTorch pickle, which may run programs; accepted: safetensors"):
            read(path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"lacks its \*.safetensors"):
        read(tmp_path)
    (tmp_path / "x.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map"):
        read(tmp_path)


def test_one_key_in_two_files_is_refused(tmp_path):
    for name in ("model.safetensors", "model.fp16.safetensors"):
        save_file({MARKS[Kind.T5]: ONE}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"1 keys are in model.safetensors and in another"):
        read(tmp_path)


def test_tensors_are_the_mapped_file(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({MARKS[Kind.T5]: torch.ones(4096, 4096), "encoder.final_layer_norm.weight": ONE}, file)
    tensors = read(file).tensors
    start, end = _mapping(file)
    assert all(start <= tensor.data_ptr() < end for tensor in tensors.values())
    assert _resident_bytes(file) < 8e6  # of 64 MiB

    tensors[MARKS[Kind.T5]][0] = 2  # private: neither the file nor another's view of it changes
    assert float(read(file).tensors[MARKS[Kind.T5]][0, 0]) == 1


def test_configuration_is_stated_in_folder_metadata_or_beside(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({MARKS[Kind.T5]: ONE}, file)
    assert config_of(file) is None
    assert config_of(tmp_path) is None
    (tmp_path / "config.json").write_text('{"d_model": 1}')
    assert config_of(file) == config_of(tmp_path) == {"d_model": 1}
    save_file({MARKS[Kind.T5]: ONE}, file, {"config": json.dumps({"d_model": 2})})
    assert config_of(file) == {"d_model": 2}
    save_file({MARKS[Kind.T5]: ONE}, file, {"config": "2"})
    with pytest.raises(CheckpointError, match="metadata"):
        config_of(file)
    (tmp_path / "config.json").write_text("{ torn")
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        config_of(tmp_path)


def _mapping(file: Path) -> tuple[int, int]:
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    starts, ends = zip(*(line.split()[0].split("-") for line in lines), strict=True)
    return min(int(start, 16) for start in starts), max(int(end, 16) for end in ends)


def _resident_bytes(file: Path) -> int:
    """What of a mapped file is in memory; that of the whole process depends on what else it does."""
    mappings = Path("/proc/self/smaps").read_text().split(f"{file}\n")[1:]
    return sum(int(mapping.partition("Rss:")[2].split()[0]) for mapping in mappings) * 1024
