"""FP8, INT8 and NF4: against torch's own float8, the definition of rounding, and bitsandbytes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hidream.errors import ConfigurationError
from hidream.formats.quantized import GGUF_WRITABLE, NF4_CODE, QUANTIZE, Quantized, Scheme, quantize

RECORDED = load_file(Path(__file__).parent / "fixtures" / "bitsandbytes.safetensors")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EVERY_FP8 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
NUMBERS = EVERY_FP8[~EVERY_FP8.float().isnan()].view(2, 127)


def weights(rows: int = 33, columns: int = 130) -> Tensor:
    """A matrix as of a linear layer, with a row of zeros and one of large values."""
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)) * 0.02
    matrix[3], matrix[4] = 0, matrix[4] * 1000
    return matrix


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [None, torch.tensor(0.37), torch.tensor([[0.37], [2.0]])])
def test_every_float8_becomes_what_torch_makes_of_it(dtype: torch.dtype, scale: Tensor | None):
    parts = {"data": NUMBERS} | ({} if scale is None else {"scale": scale})
    exact = NUMBERS.float() * (1 if scale is None else scale)
    assert torch.equal(Quantized(Scheme.FP8, parts, NUMBERS.shape).dense(dtype), exact.to(dtype))


def test_the_other_float8_is_read_too():
    data = torch.randn(4, 8).to(torch.float8_e5m2)
    assert torch.equal(Quantized("fp8", {"data": data}, data.shape).dense(torch.float32), data.float())


def test_floats_are_only_cast():
    data = torch.randn(4, 8)
    stored = Quantized(Scheme.FLOAT, {"data": data}, data.shape)
    assert torch.equal(stored.dense(torch.bfloat16), data.to(torch.bfloat16))
    assert stored.dense(torch.float32) is data


def test_float8_has_all_its_bits_at_any_size():
    """Half a step of 2^-4 relative to the value, and of the smallest step of a row."""
    matrix, stored = weights(), quantize(weights(), "fp8")
    largest = matrix.abs().amax(dim=1, keepdim=True)
    error = (stored.dense(torch.float32) - matrix).abs()
    assert (error <= torch.maximum(matrix.abs() * 2**-4, largest * 2**-17)).all()


def test_float8_times_its_scale_is_exact_in_bfloat16():
    stored = quantize(weights(), "fp8")
    assert torch.equal(stored.dense(torch.bfloat16).float(), stored.dense(torch.float32))


def test_int8_is_off_by_half_a_step():
    matrix, stored = weights(), quantize(weights(), "int8")
    step = matrix.abs().amax(dim=1, keepdim=True) / 127
    assert ((stored.dense(torch.float32) - matrix).abs() <= step * 0.5001).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", QUANTIZE)
def test_sixteen_bits_are_the_rounded_matrix(scheme: str, dtype: torch.dtype):
    stored = quantize(weights(), scheme)
    assert torch.equal(stored.dense(dtype), stored.dense(torch.float32).to(dtype))


@pytest.mark.parametrize("scheme", QUANTIZE)
def test_zeros_stay_zeros(scheme: str):
    assert not quantize(torch.zeros(4, 64), scheme).dense(torch.float32).any()


@pytest.mark.parametrize("name", ["plain", "double"])
def test_nf4_is_quantised_as_bitsandbytes_does(name: str):
    stored = quantize(RECORDED[f"{name}.matrix"], "nf4")
    theirs = RECORDED[f"{name}.weight"].flatten()
    ours = stored.parts["data"].flatten()
    assert torch.equal(ours[: theirs.numel()], theirs)
    assert torch.equal(torch.tensor(NF4_CODE), RECORDED[f"{name}.weight.quant_map"])


def test_nf4_is_read_as_bitsandbytes_does():
    """Bit for bit in float32, a last block that is cut included."""
    stored = quantize(RECORDED["plain.matrix"], "nf4")
    assert torch.equal(stored.parts["scale"].flatten(), RECORDED["plain.weight.absmax"])
    assert torch.equal(stored.dense(torch.float32), RECORDED["plain.dequantized"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", QUANTIZE)
def test_making_the_matrix_is_one_graph(scheme: str, dtype: torch.dtype):
    stored = quantize(weights(), scheme)
    torch.compiler.reset()
    compiled = torch.compile(Quantized.dense, fullgraph=True, backend="eager")
    assert torch.equal(compiled(stored, dtype), stored.dense(dtype))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", QUANTIZE)
@pytest.mark.integration
def test_the_compiled_matrix_is_the_same(scheme: str, dtype: torch.dtype):
    stored = quantize(weights(), scheme)
    torch.compiler.reset()
    assert torch.equal(torch.compile(Quantized.dense, fullgraph=True)(stored, dtype), stored.dense(dtype))


@pytest.mark.parametrize(
    ("scheme", "bits"), [("fp8", 8.125), ("int8", 8.125), ("nf4", 4.75), ("Q8_0", 8.5), ("Q4_0", 4.5)]
)
def test_the_bytes_are_counted(scheme: str, bits: float):
    """NF4: four bits, a float32 for 64 values, and 2 KiB for the values of each byte."""
    stored = quantize(torch.randn(256, 256), scheme)
    assert stored.nbytes * 8 / 256**2 == pytest.approx(bits)
    assert stored.to(torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize("scheme", [*QUANTIZE, *GGUF_WRITABLE])
def test_quantising_is_deterministic_and_leaves_the_matrix(scheme: str):
    matrix = torch.randn(16, 256, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    before = matrix.clone()
    first, second = quantize(matrix, scheme), quantize(matrix, scheme)
    assert torch.equal(first.dense(torch.float32), second.dense(torch.float32))
    assert torch.equal(matrix, before)


def test_an_unknown_scheme_is_named():
    with pytest.raises(ConfigurationError, match=r"'Q4_K'; accepted: fp8, int8, nf4, Q4_0, "):
        quantize(weights(), "Q4_K")


def test_rows_without_whole_blocks_are_refused():
    with pytest.raises(ConfigurationError, match=r"\[33, 130\] cannot be quantised to Q8_0, in rows of 32"):
        quantize(weights(), "Q8_0")
