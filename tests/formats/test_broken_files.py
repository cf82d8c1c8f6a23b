"""Every problem of a file is one line of ours that names the file; no library's message reaches a user."""

from __future__ import annotations

import json
import os
import random
import struct
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_gguf_encoders import llama, t5

import llama_cpp
from hidream.errors import CheckpointError
from hidream.formats.bitsandbytes_file import fold
from hidream.formats.detect import config_of, read, read_shapes
from hidream.formats.gguf_file import write_gguf
from hidream.formats.json_object import object_of
from hidream.model.checkpoint.inferred import published_config
from hidream.parts import Kind

NAME = "encoder.block.0.layer.0.SelfAttention.q.weight"
DEEP = "[" * 100_000
LIBRARIES = (
    "Errno",
    "Error(",
    "deserializ",
    "reshape",
    "Expecting",
    "utf-8",
    "recursion",
    "unpack",
    "subscript",
    "NoneType",
)


def assert_said(path, call, *wanted):
    with pytest.raises(CheckpointError) as raised:
        call(path)
    message = raised.value.message
    assert str(path) in message
    assert "\n" not in message
    assert not [word for word in LIBRARIES if word in message], message
    for text in wanted:
        assert text in message


def header(text: str | bytes, data: bytes = b"") -> bytes:
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text)) + text + data


def entry(offsets=(0, 16), dtype="F32", shape=(2, 2)):
    return json.dumps({NAME: {"dtype": dtype, "shape": shape, "data_offsets": offsets}})


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it is 0 bytes that are not a complete safetensors file"),
        (b"\x10", "it is 1 bytes"),
        (b"<html>not found</html>", "it is 22 bytes that are not a complete safetensors file"),
        (header("{ torn"), "it is a file whose header is not a list of tensors"),
        (header(DEEP), "it is a file whose header is not a list of tensors"),
        (header("[1]"), "it is a file whose header is not a list of tensors"),
        (header(b"\xff\xfe\x00"), "it is a file whose header is not a list of tensors"),
        (header('{"a": 1}'), "it is a file whose header is not a list of tensors"),
        (header(entry(), bytes(8)), "it is cut off after"),
        (header(entry((0, 2**60)), bytes(16)), "it is cut off after"),
        (header(entry((8, 4)), bytes(16)), "a file whose header does not fit its"),
        (header(entry(dtype="F999"), bytes(16)), "has tensors of the type 'F999', which is not supported"),
        (header(entry(shape=(2, 3)), bytes(16)), "a file whose header does not fit its"),
        (header(entry(shape=(2**40, 2**40)), bytes(16)), "a file whose header does not fit its"),
        (header(entry((-1, 15)), bytes(16)), "has a tensor of the shape [2, 2] at the offsets [-1, 15]"),
    ],
)
def test_safetensors(tmp_path, content, what):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for call in (read, read_shapes):
        assert_said(path, call, what, "accepted: a whole safetensors file", "download it again")


@pytest.mark.parametrize("content", ["{ torn", DEEP, "[1]", '"a"', "null", "[[1, 2]]", b"\xff\xfe\x00", b""])
@pytest.mark.parametrize("where", ["config.json", "model.safetensors.index.json"])
def test_json_beside_weights(tmp_path, content, where):
    path = tmp_path / where
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError) as raised:
        config_of(tmp_path) if where == "config.json" else read(tmp_path)
    assert str(path) in raised.value.message
    assert "cannot be read: it is " in raised.value.message
    assert not [word for word in LIBRARIES if word in raised.value.message.replace("UTF-8", "")]


@pytest.mark.parametrize("files", [[], "a", {"a": 1}, {"a": ["b"]}, None])
def test_an_index_that_names_no_files(tmp_path, files):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(CheckpointError, match=r"index.json cannot be read: it names no files; accepted: .*weight_map"):
        read(tmp_path)


@pytest.mark.parametrize("stated", ["{ torn", DEEP, "[1]", "[[1, 2]]", "null"])
def test_metadata(tmp_path, stated):
    save_file({NAME: torch.ones(2, 2)}, tmp_path / "a.safetensors", {"config": stated})
    assert_said(tmp_path / "a.safetensors", config_of, "its metadata `config` is not a JSON object: it is ")


def test_what_is_no_file(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    assert_said(tmp_path / "a.safetensors", read, "lacks its *.safetensors file")
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert_said(tmp_path / "pipe.safetensors", read, "is neither a file nor a folder")
    (tmp_path / "model.safetensors").mkdir()
    assert_said(tmp_path, read, "lacks a.safetensors, model.safetensors")
    assert_said(tmp_path / ("a" * 5000), read, "does not exist")


@pytest.fixture
def open_folder():
    """A folder that everybody may enter, which pytest's own are not, for somebody who is not root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        user = os.geteuid()
        yield Path(folder)
        os.seteuid(user)


def test_what_may_not_be_read(open_folder):
    path = open_folder / "a.safetensors"
    save_file({NAME: torch.ones(2, 2)}, path)
    path.chmod(0)
    if os.geteuid() == 0:  # who may read everything
        os.seteuid(65534)
    assert_said(path, read, "Permission denied; accepted: a readable file")


@pytest.mark.parametrize(
    ("shape", "what"),
    [([5], "not two dimensions"), ([3], "not two dimensions"), ([[4, 8], [-4, -8]], "which cannot have been")],
)
def test_gguf_of_other_shapes(tmp_path, shape, what):
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "t5")
    writer.add_block_count(1)
    for name in ("token_embd.weight", "enc.blk.0.attn_rel_b.weight"):
        stored, original = shape if isinstance(shape[0], list) else (shape, shape)
        writer.add_array(f"comfy.gguf.orig_shape.{name}", original)
        writer.add_tensor(name, np.zeros(stored, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_said(path, read, what)


@pytest.mark.parametrize("shape", [[], [3], [2, 2, 2], [0, 4]])
def test_parts_of_other_shapes(tmp_path, shape):
    keys = {
        Kind.CLIP: [
            "text_projection",
            "transformer.resblocks.0.attn.in_proj_weight",
            "text_model.encoder.layers.0.mlp.fc1.weight",
        ],
        Kind.T5: [NAME, "shared.weight"],
        Kind.LLAMA: ["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"],
        Kind.VAE: ["decoder.conv_in.weight"],
        Kind.TRANSFORMER: ["double_stream_blocks.0.a", "x_embedder.proj.weight"],
    }
    for kind, names in keys.items():
        path = tmp_path / "a.safetensors"
        save_file({name: torch.ones(shape) for name in names}, path)
        with pytest.raises(CheckpointError) as raised:
            published = read(path)
            published_config(kind, {name: tensor.shape for name, tensor in published.tensors.items()})
        assert not [word for word in LIBRARIES if word in raised.value.message]


@pytest.mark.parametrize(
    "state",
    [b"{ torn", b"[1]", DEEP.encode(), b"{}", b'{"blocksize": 0, "shape": [2]}', b'{"blocksize": "a", "shape": "b"}'],
)
def test_states_of_bitsandbytes(state):
    key = "a.weight.quant_state.bitsandbytes__nf4"
    tensors = {"a.weight": torch.zeros(4, 1, dtype=torch.uint8), key: torch.tensor(list(state), dtype=torch.uint8)}
    tensors |= {"a.weight.absmax": torch.ones(1), "a.weight.quant_map": torch.ones(16)}
    with pytest.raises(CheckpointError, match=r"the bitsandbytes weight a.weight (is damaged|lacks)") as raised:
        fold(tensors)
    assert not [word for word in LIBRARIES if word in raised.value.message]


@pytest.mark.parametrize("kind", ["safetensors", "hidream", "llama", "t5"])
def test_any_change_of_a_header_is_read_or_said(tmp_path, kind):
    """Random bytes in the first kilobytes: an error of ours, or a file whose numbers are others."""
    path = tmp_path / "a"
    if kind == "safetensors":
        save_file({NAME: torch.ones(2, 2), "shared.weight": torch.ones(4, 2)}, path, {"config": '{"d_model": 2}'})
    elif kind == "hidream":
        write_gguf(
            path,
            {"caption_projection.0.linear.weight": torch.ones(4, 256), "double_stream_blocks.0.a": torch.ones(3)},
            "Q8_0",
        )
    else:
        llama_cpp.write(path, llama() if kind == "llama" else t5(), kind, "Q8_0")
    whole = path.read_bytes()
    generator = random.Random(0)
    messages: set[str] = set()
    for _ in range(100):
        torn = bytearray(whole)
        for _ in range(generator.choice((1, 1, 2, 8))):
            torn[generator.randrange(min(len(torn), 3000))] = generator.choice(
                (0, 1, 8, 127, 255, generator.randrange(256))
            )
        path.write_bytes(torn)
        for call in (read, read_shapes, config_of):
            try:
                call(path)
            except CheckpointError as error:
                messages.add(error.message)
    assert len(messages) > 1
    for message in messages:
        assert str(path) in message
        assert not [word for word in LIBRARIES if word in message], message


def test_what_is_no_object_is_said():
    for text, what in (
        ("[]", "JSON, but not an object"),
        ("{", "not JSON from line 1, column 2 on"),
        (DEEP, "too deeply"),
    ):
        with pytest.raises(ValueError, match=what):
            object_of(text)
