"""4-bit weights as bitsandbytes saves them: a recording of the package (`record_bitsandbytes.py`)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hidream.errors import CheckpointError
from hidream.formats.bitsandbytes_file import fold
from hidream.formats.quantized import Quantized

RECORDED = load_file(Path(__file__).parent / "fixtures" / "bitsandbytes.safetensors")
STATE = "double.weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize("name", ["plain", "double"])
def test_a_weight_is_read_as_bitsandbytes_reads_it(name: str):
    """Bit for bit, in the type that it was recorded in."""
    weight, theirs = fold(RECORDED)[f"{name}.weight"], RECORDED[f"{name}.dequantized"]
    assert isinstance(weight, Quantized)
    assert weight.shape == theirs.shape
    assert torch.equal(weight.dense(theirs.dtype), theirs)


def test_all_else_stays_and_nothing_is_left_over():
    folded = fold(RECORDED)
    assert folded.keys() == {
        f"{name}.{key}" for name in ("plain", "double") for key in ("matrix", "dequantized", "weight")
    }
    assert folded["plain.matrix"] is RECORDED["plain.matrix"]


def test_values_are_not_copied():
    weight = fold(RECORDED)["double.weight"]
    assert isinstance(weight, Quantized)
    assert weight.parts["data"].data_ptr() == RECORDED["double.weight"].data_ptr()


def test_a_file_without_such_weights_stays():
    tensors = {"a": torch.zeros(2)}
    assert fold(tensors) == tensors


@pytest.mark.parametrize("part", [".absmax", ".quant_map", ".nested_quant_map", ".nested_absmax"])
def test_a_missing_part_is_an_error(part: str):
    lost = f"double.weight{part}"
    with pytest.raises(CheckpointError, match=rf"double\.weight lacks {lost}; accepted: complete NF4 files"):
        fold({key: value for key, value in RECORDED.items() if key != lost})


def test_missing_values_are_an_error():
    with pytest.raises(CheckpointError, match=r"1 weights of bitsandbytes have a state, but no values: plain\.weight"):
        fold({key: value for key, value in RECORDED.items() if key != "plain.weight"})


def test_torn_values_are_an_error():
    with pytest.raises(CheckpointError, match="8000 bytes in 260 blocks"):
        fold(RECORDED | {"double.weight": RECORDED["double.weight"][:8000]})


def test_a_torn_state_is_an_error():
    with pytest.raises(CheckpointError, match=r"double\.weight is damaged"):
        fold(RECORDED | {STATE: RECORDED[STATE][:-5]})


def test_another_type_is_named():
    tensors = {key.replace("__nf4", "__fp4"): value for key, value in RECORDED.items()}
    with pytest.raises(CheckpointError, match="quantised to 'fp4' by bitsandbytes; accepted: nf4"):
        fold(tensors)


def test_values_without_their_state_are_an_error():
    lost = {key: value for key, value in RECORDED.items() if not key.startswith("plain.weight.quant_state")}
    with pytest.raises(
        CheckpointError, match=r"1 weights of bitsandbytes lack their state .*: plain\.weight; accepted"
    ):
        fold(lost)


@pytest.mark.parametrize("part", ["quant_map", "nested_quant_map", "nested_absmax"])
def test_tables_that_are_not_finite_are_an_error(part: str):
    torn = RECORDED[f"double.weight.{part}"].clone()
    torn[0] = torch.nan
    with pytest.raises(CheckpointError, match=rf"double\.weight is damaged: double\.weight\.{part} is not finite"):
        fold(RECORDED | {f"double.weight.{part}": torn})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"blocksize": 2**33}, "its blocks have 8589934592 values, not 32, 64"),
        ({"blocksize": 64.0}, "its blocks have 64.0 values"),
        ({"nested_blocksize": 10**12}, "its blocks have 1000000000000 values"),
        ({"nested_blocksize": 32}, "scales of scales are not those of"),
        ({"nested_offset": 1e999}, "JSON with Infinity"),
        ({"shape": [2**40, 2**40]}, "its shape is"),
        ({"shape": [-1, -8]}, "its shape is"),
        ({"shape": "ab"}, "its shape is 'ab'"),
        ({"shape": []}, "are not a matrix of shape"),
    ],
)
def test_a_state_is_held_against_its_tensors(changes, why):
    state = json.loads(bytes(RECORDED[STATE].tolist()))
    text = torch.tensor(list(json.dumps(state | changes).encode()), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=f"the bitsandbytes weight double.weight is damaged: .*{why}"):
        fold(RECORDED | {STATE: text})


@pytest.mark.parametrize("state", [torch.tensor(2**40), torch.zeros(2**17, dtype=torch.uint8), torch.zeros(3)])
def test_a_state_is_bytes_of_a_sensible_length(state):
    with pytest.raises(CheckpointError, match=r"double\.weight is damaged: it is torch"):
        fold(RECORDED | {STATE: state})


def test_a_code_of_another_length_is_an_error():
    with pytest.raises(CheckpointError, match="its code has 15 values, not 16"):
        fold(RECORDED | {"double.weight.quant_map": RECORDED["double.weight.quant_map"][:15]})


def test_eight_bits_of_bitsandbytes_are_named():
    with pytest.raises(CheckpointError, match=r"1 weights of bitsandbytes are in 8 bits .LLM.int8.*: a;"):
        fold({"a.weight": torch.zeros(2, 2, dtype=torch.int8), "a.SCB": torch.ones(2)})
