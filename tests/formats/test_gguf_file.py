"""GGUF files: ours read by the gguf package, the package's read by us, and the errors."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from torch import Tensor

from hidream.errors import CheckpointError, ConfigurationError
from hidream.formats.gguf_file import HIDREAM_KEY, WRITABLE, open_gguf, write_gguf
from hidream.formats.gguf_grids import GGUF_TYPES
from hidream.formats.quantized import Quantized, quantize

GATE = "double_stream_blocks.0.block.ff_i.gate.weight"
BITS_READ = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = {
        HIDREAM_KEY: (24, 512),
        "x.bias": (2000,),
        "small.weight": (2, 256),
        "odd.weight": (40, 72),
        GATE: (4, 512),
    }
    return {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()}


def written_by_the_package(
    path: Path,
    arrays: dict[str, tuple[np.ndarray, GGMLQuantizationType]],
    architecture: str = "hidream",
    original: dict[str, list[int]] | None = None,
) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_string("general.name", "a test")
    for name, shape in (original or {}).items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
    for name, (array, kind) in arrays.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_of_every_type_is_read(path: Path):
    generator = np.random.default_rng(0)
    arrays = {
        name: (generator.integers(0, 100, (3, 512 // t.values * t.nbytes), dtype=np.uint8), GGMLQuantizationType[name])
        for name, t in GGUF_TYPES.items()
    }
    for name in BITS_READ:
        kind = GGMLQuantizationType[name]
        arrays[name] = (gguf.quantize(generator.standard_normal((3, 512), dtype=np.float32), kind), kind)
    opened = open_gguf(written_by_the_package(path, arrays))
    assert opened.architecture == "hidream"
    assert opened.metadata["general.name"] == "a test"
    for name, (array, kind) in arrays.items():
        value = opened.tensors[name]
        dense = value.dense(torch.float32) if isinstance(value, Quantized) else value.float()
        assert np.array_equal(dense.numpy(), gguf.dequantize(array, kind)), name
        assert tuple(value.shape) == (3, 512)
        assert isinstance(value, Quantized) or value.dtype is BITS_READ[name]


def test_tensors_are_the_mapping(path: Path):
    write_gguf(path, tensors(), "Q8_0")
    opened = open_gguf(path)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    start, end = (int(number, 16) for number in maps[0][0].split("-"))
    for value in opened.tensors.values():
        data = value.parts["data"] if isinstance(value, Quantized) else value
        assert start <= data.data_ptr() < end


def test_writing_to_a_tensor_leaves_the_file(path: Path):
    write_gguf(path, tensors(), "F16")
    before = path.read_bytes()
    value = open_gguf(path).tensors[HIDREAM_KEY]
    assert isinstance(value, Tensor)
    value.zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", WRITABLE)
def test_what_we_write_the_package_reads(path: Path, kind: str):
    write_gguf(path, tensors(), kind, metadata={"hidream.variant": "dev"})
    reader = GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "hidream"
    assert reader.fields["hidream.variant"].contents() == "dev"
    read = {tensor.name: tensor for tensor in reader.tensors}
    assert list(read) == list(tensors())
    plain = kind in BITS_READ
    for name, tensor in tensors().items():
        exact = name in ("x.bias", "small.weight", GATE) or (name == "odd.weight" and not plain)
        assert read[name].tensor_type.name == ("F32" if exact else kind)
        values = gguf.dequantize(read[name].data, read[name].tensor_type).reshape(tensor.shape)
        if exact:
            assert np.array_equal(values, tensor.float().numpy())
        elif plain:
            assert np.array_equal(values, tensor.to(BITS_READ[kind]).float().numpy())
        else:
            packed = gguf.quantize(tensor.float().numpy(), GGMLQuantizationType[kind])
            assert np.array_equal(values, gguf.dequantize(packed, GGMLQuantizationType[kind]))
    assert not list(path.parent.glob("*.part"))


def test_blocks_are_written_as_they_are_and_other_schemes_made_again(path: Path):
    matrix = tensors()[HIDREAM_KEY].float()
    stored: dict[str, Tensor | Quantized] = {HIDREAM_KEY: quantize(matrix, "Q8_0"), "other": quantize(matrix, "fp8")}
    write_gguf(path, stored, "Q8_0")
    read = open_gguf(path).tensors
    first, second = read[HIDREAM_KEY], read["other"]
    assert isinstance(first, Quantized)
    assert isinstance(second, Quantized)
    assert torch.equal(first.parts["data"].flatten(), stored[HIDREAM_KEY].parts["data"].flatten())
    assert (second.dense(torch.float32) - matrix).norm() < 0.04 * matrix.norm()


def test_a_quantised_file_is_converted_to_another_type(path: Path, tmp_path: Path):
    write_gguf(path, tensors(), "Q8_0")
    again = tmp_path / "again.gguf"
    write_gguf(again, open_gguf(path).tensors, "Q4_0")
    value = open_gguf(again).tensors[HIDREAM_KEY]
    assert isinstance(value, Quantized)
    assert value.scheme == "Q4_0"


def test_an_original_shape_is_restored(path: Path):
    array = np.arange(4 * 256, dtype=np.float32).reshape(4, 256)
    arrays = {"plain": (array, GGMLQuantizationType.F32)}
    arrays["q"] = (gguf.quantize(array, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0)
    original = {"plain": [4, 16, 4, 4], "q": [64, 16]}
    opened = open_gguf(written_by_the_package(path, arrays, original=original)).tensors
    plain, quantised = opened["plain"], opened["q"]
    assert isinstance(plain, Tensor)
    assert isinstance(quantised, Quantized)
    assert torch.equal(plain, torch.from_numpy(array).view(4, 16, 4, 4))
    assert torch.equal(
        quantised.dense(torch.float32).flatten(), torch.from_numpy(gguf.dequantize(*arrays["q"])).flatten()
    )
    assert quantised.dense(torch.float32).shape == (64, 16)


def test_an_impossible_original_shape_is_an_error(path: Path):
    arrays = {"plain": (np.zeros((4, 8), dtype=np.float32), GGMLQuantizationType.F32)}
    with pytest.raises(CheckpointError, match=r"plain of shape \[4, 8\], which cannot have been \[5, 8\]"):
        open_gguf(written_by_the_package(path, arrays, original={"plain": [5, 8]}))


def test_another_architecture_is_named(path: Path):
    arrays = {"img_in.weight": (np.zeros((4, 8), dtype=np.float32), GGMLQuantizationType.F32)}
    with pytest.raises(CheckpointError, match="architecture 'flux'; accepted: 'hidream'"):
        open_gguf(written_by_the_package(path, arrays, architecture="flux"))


def test_a_file_that_does_not_say_what_it_is_is_known_by_its_keys(path: Path):
    arrays = {HIDREAM_KEY: (np.zeros((4, 8), dtype=np.float32), GGMLQuantizationType.F32)}
    assert open_gguf(written_by_the_package(path, arrays, architecture="pig")).architecture == "hidream"
    arrays = {"img_in.weight": arrays[HIDREAM_KEY]}
    with pytest.raises(CheckpointError, match="architecture 'pig'"):
        open_gguf(written_by_the_package(path, arrays, architecture="pig"))


def test_an_unknown_type_is_named(path: Path):
    written_by_the_package(path, {HIDREAM_KEY: (np.zeros((1, 34), dtype=np.uint8), GGMLQuantizationType.Q8_0)})
    whole = path.read_bytes()
    field = struct.pack("<QI", 1, GGMLQuantizationType.Q8_0)  # the last dimension, and the type behind it
    assert whole.count(field) == 1
    path.write_bytes(whole.replace(field, struct.pack("<QI", 1, 99)))
    message = r"unknown type: .*99.* is not a valid .*; accepted: F32, F16, BF16, Q4_0"
    with pytest.raises(CheckpointError, match=message):
        open_gguf(path)


def test_a_type_that_cannot_be_read_is_named(path: Path):
    written_by_the_package(path, {HIDREAM_KEY: (np.zeros((4, 36), dtype=np.uint8), GGMLQuantizationType.Q1_0)})
    with pytest.raises(CheckpointError, match=f"{HIDREAM_KEY} in the type Q1_0; accepted: F32, F16, BF16, Q4_0"):
        open_gguf(path)


def test_a_torn_file_is_an_error_wherever_it_ends(path: Path):
    write_gguf(path, tensors(), "Q8_0")
    whole = path.read_bytes()
    for length in (*range(4, 1200, 7), len(whole) - 5000):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model.gguf is damaged, or not a GGUF file"):
            open_gguf(path)


def test_what_is_not_gguf_is_an_error(path: Path):
    for content in (b"", b"PK\x03\x04" + bytes(100), b"\x10\x00\x00\x00\x00\x00\x00\x00{}"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a GGUF file"):
            open_gguf(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_gguf(path.with_name("absent.gguf"))


def test_the_other_byte_order_is_an_error(path: Path):
    writer = GGUFWriter(path, "hidream", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor(HIDREAM_KEY, np.zeros((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="byte order; accepted: little-endian"):
        open_gguf(path)


def test_a_type_that_cannot_be_written_is_named(path: Path):
    with pytest.raises(ConfigurationError, match="'Q4_K'; accepted: F32, F16, BF16, Q4_0"):
        write_gguf(path, tensors(), "Q4_K")
