"""Joining scales with their matrices; a scaled file with a missing or wrong scale is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import comfy_files
from hidream.errors import CheckpointError
from hidream.formats.comfy_scales import with_scales
from hidream.formats.convert import convert
from hidream.formats.detect import read
from hidream.formats.quantized import Quantized
from hidream.formats.targets import ConversionOptions, Format
from hidream.model.checkpoint.checkpoint import embedded
from hidream.model.checkpoint.inferred import published_config
from hidream.types import Variant

ONE = torch.ones(2, 2)
FP8 = ONE.to(torch.float8_e4m3fn)
MARKER = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}


def stating(**how):
    return torch.tensor(list(json.dumps(how).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("spelling", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([0.5, 2.0]), torch.ones(2, 1)])
def test_scales_join_their_matrices(spelling, scale):
    matrix = torch.tensor([[1.0, -448.0, 0.25], [2.0, 0.0, 3.5]])
    values = matrix.to(torch.float8_e4m3fn)
    file = {"scaled_fp8": torch.zeros(2), "a.weight": values, f"a.{spelling}": scale, "a.bias": ONE, "b.weight": ONE}
    ours = with_scales(file | {"a.scale_input": ONE, "a.input_scale": ONE}, "file")
    assert ours.keys() == {"a.weight", "a.bias", "b.weight"}
    quantized = ours["a.weight"]
    assert isinstance(quantized, Quantized)
    assert quantized.parts["data"] is values  # no copy
    assert torch.equal(quantized.dense(torch.float32), matrix * scale.reshape(-1, 1))


def test_int8_by_comfy_quant():
    stated = torch.tensor(list(json.dumps({"format": "int8_tensorwise"}).encode()), dtype=torch.uint8)
    values = torch.tensor([[1, -127], [3, 4]], dtype=torch.int8)
    file = {"a.weight": values, "a.weight_scale": torch.tensor([0.5, 2.0]), "a.comfy_quant": stated}
    quantized = with_scales(file, "file")["a.weight"]
    assert isinstance(quantized, Quantized)
    assert torch.equal(quantized.dense(torch.float32), torch.tensor([[0.5, -63.5], [6.0, 8.0]]))


@pytest.mark.parametrize("stated", [{"format": "nvfp4"}, {"format": "int8_tensorwise", "convrot": True}, [1]])
def test_other_quantisations_are_named(stated):
    file = {"a.comfy_quant": torch.tensor(list(json.dumps(stated).encode()), dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match=r"file: a.comfy_quant says .*accepted: float8_e4m3fn"):
        with_scales(file, "file")


def test_scales_that_do_not_fit_are_named():
    with pytest.raises(CheckpointError, match=r"a.weight has a scale, but is torch.float32"):
        with_scales({"a.weight": ONE, "a.scale_weight": torch.tensor(1.0)}, "file")
    with pytest.raises(CheckpointError, match=r"a.weight \[2, 2\] has a scale \[3\]"):
        with_scales({"a.weight": ONE.to(torch.float8_e4m3fn), "a.scale_weight": torch.ones(3)}, "file")


@pytest.mark.parametrize("part", ["transformer", "text_encoder_3", "text_encoder_4"])
@pytest.mark.parametrize("kept", ["none", "all but one", "every second"])
def test_a_file_that_lost_scales_is_refused(tmp_path, part, kept):
    """Case 11: it drew another image."""
    file = tmp_path / "scaled.safetensors"
    options = ConversionOptions(Format.COMFY, "fp8_scaled")
    convert(embedded(Variant.DEV).part(part), file, options, published_config, lambda *_: None)
    tensors = load_file(file)
    scales = sorted(name for name in tensors if name.endswith(".scale_weight"))
    lost = {"none": scales, "all but one": scales[:1], "every second": scales[::2]}[kept]
    save_file({name: tensor for name, tensor in tensors.items() if name not in lost}, file)
    names = ", ".join(name.replace(".scale_weight", ".weight") for name in lost[:3])
    with pytest.raises(CheckpointError, match=f"{len(lost)} matrices in 8 bits lack their scale: {names}.*; accepted:"):
        read(file)


@pytest.mark.parametrize(
    "said",
    [
        MARKER,
        {"b.weight": FP8, "b.weight_scale": torch.tensor(1.0)},
        {"b.weight": FP8, "b.scale_weight": torch.tensor(1.0)},
        {"a.input_scale": torch.tensor(1.0)},
        {"a.comfy_quant": stating(format="float8_e4m3fn")},
    ],
)
def test_whatever_says_that_a_file_is_scaled_asks_for_scales(said):
    with pytest.raises(CheckpointError, match=r"file: 1 matrices in 8 bits lack their scale: a.weight; accepted"):
        with_scales({"a.weight": FP8} | said, "file")


def test_a_layer_that_is_said_to_be_quantised_needs_its_matrix_and_its_scale():
    stated = {"a.comfy_quant": stating(format="float8_e4m3fn")}
    for lost in ({}, {"a.weight": ONE}):
        with pytest.raises(CheckpointError, match=r"lack their scale: a.weight"):
            with_scales(stated | lost, "file")


def test_the_metadata_may_say_it_for_all_layers(tmp_path):
    layers = {"layers": {"model.layers.0.self_attn.q_proj": {"format": "float8_e4m3fn"}}}
    tensors = {"model.layers.0.self_attn.q_proj.weight": FP8}
    save_file(tensors, tmp_path / "a", {"_quantization_metadata": json.dumps(layers)})
    with pytest.raises(CheckpointError, match=r"1 matrices in 8 bits lack their scale"):
        read(tmp_path / "a")
    scales = {"model.layers.0.self_attn.q_proj.weight_scale": torch.tensor(0.5)}
    save_file(tensors | scales, tmp_path / "a", {"_quantization_metadata": json.dumps(layers)})
    assert torch.equal(read(tmp_path / "a").tensors["layers.0.self_attn.q_proj.weight"].dense(torch.float32), 0.5 * ONE)
    layers["layers"]["model.layers.0.self_attn.q_proj"] = {"format": "nvfp4"}
    save_file(tensors | scales, tmp_path / "a", {"_quantization_metadata": json.dumps(layers)})
    with pytest.raises(CheckpointError, match=r"says .*nvfp4"):
        read(tmp_path / "a")
    save_file(tensors | scales, tmp_path / "a", {"_quantization_metadata": "[" * 100_000})
    with pytest.raises(CheckpointError, match=r"its metadata `_quantization_metadata` cannot be read"):
        read(tmp_path / "a")


def test_what_comfy_never_scales_needs_no_scale():
    """Biases and norms of any type, matrices in 16 bits, T5's table of positions; and all of a plain cast."""
    plain = {
        "a.bias": torch.ones(2).to(torch.float8_e4m3fn),
        "norm.weight": torch.ones(2),
        "embed.weight": ONE.half(),
        "relative_attention_bias.weight": FP8,
    }
    assert with_scales(MARKER | plain, "file") == plain
    cast = plain | {"b.weight": FP8, "c.weight": ONE.to(torch.float8_e5m2)}
    assert with_scales(cast, "file") == cast


def test_eight_bit_integers_of_a_scaled_file_need_a_scale():
    """Of any other file they are refused when they are given to a module, as no floats."""
    int8 = {"a.weight": ONE.to(torch.int8), "b.weight": ONE.to(torch.int8), "b.weight_scale": torch.tensor(1.0)}
    with pytest.raises(CheckpointError, match=r"1 matrices in 8 bits lack their scale: a.weight"):
        with_scales(int8, "file")


def test_scales_without_their_matrix_are_named():
    with pytest.raises(CheckpointError, match=r"file: 2 scales lack their matrix: a.weight, b.weight; accepted"):
        with_scales({"a.scale_weight": torch.tensor(1.0), "b.weight_scale": torch.tensor(1.0)}, "file")


def test_two_scales_of_one_matrix_are_named():
    scales = {"a.scale_weight": torch.tensor(1.0), "a.weight_scale": torch.tensor(1.0)}
    with pytest.raises(CheckpointError, match=r"a.weight has two scales"):
        with_scales({"a.weight": FP8} | scales, "file")


@pytest.mark.parametrize("scale", [torch.nan, torch.inf, -torch.inf, 0.0, -0.5])
def test_a_scale_that_is_no_positive_number_is_named(scale):
    with pytest.raises(CheckpointError, match=rf"the scale of a.weight is {scale:g}; accepted: positive numbers"):
        with_scales(MARKER | {"a.weight": FP8, "a.scale_weight": torch.tensor(scale)}, "file")
    with pytest.raises(CheckpointError, match=r"the scale of a.weight is torch.float32 \[2\]; accepted: positive"):
        with_scales(MARKER | {"a.weight": FP8, "a.scale_weight": torch.tensor([1.0, scale])}, "file")


def test_a_scale_in_integers_is_named():
    with pytest.raises(CheckpointError, match=r"the scale of a.weight is 1; accepted: positive numbers"):
        with_scales(MARKER | {"a.weight": FP8, "a.scale_weight": torch.tensor(1, dtype=torch.uint8)}, "file")


def test_what_is_converted_to_scaled_fp8_leaves_no_matrix_of_eight_bits_unscaled(tmp_path):
    """From a plain cast, of which also the embedding is in eight bits."""
    cast = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.dim() == 2 else tensor
        for name, tensor in comfy_files.tensors_of("text_encoder_3").items()
    }
    source = comfy_files.write(tmp_path / "cast.safetensors", cast, comfy_files.config_of("text_encoder_3"))
    target = tmp_path / "scaled.safetensors"
    convert(source, target, ConversionOptions(Format.COMFY, "fp8_scaled"), published_config, lambda *_: None)
    written = read(target).tensors
    assert isinstance(written["encoder.block.0.layer.0.SelfAttention.q.weight"], Quantized)
    assert torch.equal(written["shared.weight"].float(), cast["shared.weight"].float())


@pytest.mark.parametrize(
    "stated",
    [torch.tensor(2**40), torch.zeros(2**17, dtype=torch.uint8), torch.tensor([1.5]), torch.tensor([[123], [125]])],
)
def test_a_text_in_a_tensor_is_bytes_of_a_sensible_length(stated):
    with pytest.raises(
        CheckpointError, match=r"a\.comfy_quant says something that cannot be read; accepted: float8_e4m3fn"
    ):
        with_scales({"a.weight": FP8, "a.comfy_quant": stated, "a.scale_weight": torch.tensor(1.0)}, "file")


def test_what_is_no_matrix_has_no_scale():
    with pytest.raises(CheckpointError, match=r"a.weight \[2\] has a scale; accepted: matrices"):
        with_scales(MARKER | {"a.weight": FP8[0], "a.scale_weight": torch.tensor(1.0)}, "file")


@pytest.mark.parametrize(
    "layers", ['{"a\\nb": {}}', '{"' + "a" * 2000 + '": {}}', "[1]", '{"a": ' + "[" * 500 + "]" * 500 + "}"]
)
def test_names_in_metadata_can_stand_in_a_message(tmp_path, layers):
    save_file(
        {"double_stream_blocks.0.a": ONE},
        tmp_path / "a.safetensors",
        {"_quantization_metadata": f'{{"layers": {layers}}}'},
    )
    with pytest.raises(CheckpointError, match="metadata `_quantization_metadata` cannot be read"):
        read(tmp_path / "a.safetensors")
