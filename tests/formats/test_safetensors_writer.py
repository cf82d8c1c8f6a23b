"""Files that are written one tensor at a time, against the public package's reader."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hidream.formats.safetensors_file import open_safetensors, shards
from hidream.formats.safetensors_writer import DTYPES, METADATA, Piece, write_safetensors, write_shards


def pieces(tensors):
    return [
        Piece({name: (tensor.dtype, tensor.shape)}, lambda name=name, tensor=tensor: {name: tensor})
        for name, tensor in tensors.items()
    ]


def random_tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = ((), (3,), (5, 7), (2, 3, 1, 1), (0, 4))
    return {
        f"{name}.{len(shape)}": (torch.randn(shape, generator=generator) * 50).to(dtype)
        for dtype, name in DTYPES.items()
        for shape in shapes
    }


def test_every_type_and_shape_is_read_by_the_package(tmp_path):
    tensors = random_tensors()
    told = []
    write_safetensors(tmp_path / "a.safetensors", pieces(tensors), {"format": "pt", "config": '{"ä": 1}'}, told.append)
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "config": '{"ä": 1}'}
    assert told == [tensor.nbytes for tensor in tensors.values()]
    addresses = {name: tensor.data_ptr() for name, tensor in open_safetensors(tmp_path / "a.safetensors")[1].items()}
    assert all(address % tensors[name].itemsize == 0 for name, address in addresses.items() if tensors[name].numel())


def test_a_piece_of_two_tensors(tmp_path):
    both = {"a": torch.ones(4, dtype=torch.int8), "b": torch.tensor(2.0)}
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in both.items()}
    write_safetensors(tmp_path / "a.safetensors", [Piece(layout, lambda: both)], {}, lambda _: None)
    read = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in both.items())


def test_the_same_size_as_the_package_writes(tmp_path):
    tensors = random_tensors()
    write_safetensors(tmp_path / "a.safetensors", pieces(tensors), METADATA, lambda _: None)
    save_file(tensors, tmp_path / "b.safetensors", METADATA)
    assert (tmp_path / "a.safetensors").stat().st_size == (tmp_path / "b.safetensors").stat().st_size


@pytest.mark.parametrize(("shard_bytes", "count"), [(10**6, 1), (1000, 3), (999, 6), (1, 6)])
def test_shards(tmp_path, shard_bytes, count):
    tensors = {f"t{i}": torch.full((125,), float(i)) for i in range(6)}  # 500 bytes each
    write_shards(tmp_path, "model", pieces(tensors), shard_bytes, lambda _: None)
    files = shards(tmp_path)
    assert [file.name for file in files] == (
        ["model.safetensors"]
        if count == 1
        else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    )
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() is (count > 1)
    if count > 1:
        stated = json.loads(index.read_text())
        assert stated["metadata"] == {"total_size": 3000}
        assert stated["weight_map"] == {name: file.name for file in files for name in load_file(file)}
