"""All of GGUF's block types against the gguf package's own dequantisation, bit for bit."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hidream.formats import blocks
from hidream.formats.gguf_grids import GGUF_TYPES
from hidream.formats.quantized import GGUF_WRITABLE, Quantized, from_blocks, quantize

ROWS = 96
PLAIN = {"F32", "F16", "BF16"}


def random_rows(name: str, rows: int = ROWS, per_row: int = 2) -> tuple[Quantized, np.ndarray]:
    """Random bytes whose scales are finite, as [rows, 2 blocks], and what gguf reads in them."""
    generator, size = np.random.default_rng(len(name)), GGUF_TYPES[name].nbytes
    data = generator.integers(0, 256, (2 * rows, per_row * size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        values = gguf.dequantize(data, GGMLQuantizationType[name])
    finite = np.isfinite(values).all(axis=1)
    data, values = data[finite][:rows], values[finite][:rows]
    assert len(values) == rows
    return from_blocks(name, torch.from_numpy(data), torch.Size(values.shape)), values


def readable(kind: GGMLQuantizationType) -> bool:
    try:
        gguf.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def writable(kind: GGMLQuantizationType) -> bool:
    try:
        gguf.quantize(np.ones((1, GGML_QUANT_SIZES[kind][0]), dtype=np.float32), kind)
    except NotImplementedError:
        return False
    return True


def test_every_type_that_the_package_reads_is_read():
    assert GGUF_TYPES.keys() | PLAIN == {kind.name for kind in GGMLQuantizationType if readable(kind)}


def test_every_type_that_the_package_writes_is_written():
    assert {*GGUF_WRITABLE, *PLAIN} == {kind.name for kind in GGMLQuantizationType if writable(kind)}


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_blocks_are_read_as_the_package_reads_them(name: str):
    assert GGML_QUANT_SIZES[GGMLQuantizationType[name]] == (GGUF_TYPES[name].values, GGUF_TYPES[name].nbytes)
    stored, values = random_rows(name)
    assert stored.dense(torch.float32).numpy().tobytes() == values.tobytes()  # signed zeros included


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", GGUF_TYPES)
def test_sixteen_bits_are_rounded_once(name: str, dtype: torch.dtype):
    stored, values = random_rows(name)
    assert torch.equal(stored.dense(dtype), torch.from_numpy(values).to(dtype))


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_chunks_do_not_show(name: str, monkeypatch: pytest.MonkeyPatch):
    stored, values = random_rows(name)
    monkeypatch.setattr(blocks, "CPU_CHUNK", 5 * 256 // torch.get_num_threads())  # the last chunk is shorter
    assert torch.equal(stored.dense(torch.float32), torch.from_numpy(values))


@pytest.mark.slow
@pytest.mark.parametrize("name", GGUF_TYPES)
def test_decoding_is_one_graph(name: str):
    stored, values = random_rows(name, rows=4)
    torch.compiler.reset()
    compiled = torch.compile(Quantized.dense, fullgraph=True, backend="eager")
    assert torch.equal(compiled(stored, torch.float32), torch.from_numpy(values))


@pytest.mark.long
@pytest.mark.parametrize("name", GGUF_TYPES)
@pytest.mark.integration
def test_compiled_decoding_gives_the_same(name: str):
    """Within float32's rounding: the compiler may fuse a product and a sum."""
    stored, values = random_rows(name, rows=4)
    torch.compiler.reset()
    compiled = torch.compile(Quantized.dense, fullgraph=True)(stored, torch.float32)
    largest = np.abs(values).reshape(-1, GGUF_TYPES[name].values).max(axis=1).repeat(GGUF_TYPES[name].values)
    assert (np.abs(compiled.numpy() - values).ravel() <= 2.0**-22 * largest).all()


@pytest.mark.parametrize("name", GGUF_WRITABLE)
def test_a_matrix_is_quantised_as_the_package_does(name: str):
    matrix = torch.randn(12, 512, generator=torch.Generator().manual_seed(1))
    stored, kind = quantize(matrix, name), GGMLQuantizationType[name]
    packed = gguf.quantize(matrix.numpy(), kind)
    assert stored.parts["data"].numpy().tobytes() == packed.tobytes()
    assert np.array_equal(stored.dense(torch.float32).numpy(), gguf.dequantize(packed, kind))


@pytest.mark.parametrize(("name", "error"), [("Q8_0", 0.01), ("Q5_1", 0.06), ("Q4_1", 0.11), ("Q4_0", 0.13)])
def test_what_was_quantised_is_close(name: str, error: float):
    matrix = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    assert (quantize(matrix, name).dense(torch.float32) - matrix).norm() < error * matrix.norm()
