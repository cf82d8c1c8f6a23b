"""Types and names of converted tensors, against torch's casts, ComfyUI's rules and diffusers' converter."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

import comfy_files
from hidream.errors import ConfigurationError
from hidream.formats import rename
from hidream.formats.comfy import autoencoder_names, llama_names
from hidream.formats.quantized import Quantized, quantize
from hidream.formats.retype import is_matrix, pieces
from hidream.parts import Kind

E4M3 = torch.float8_e4m3fn
SIXTEEN = (torch.float32, torch.bfloat16, torch.float16)
MATRIX = "double_stream_blocks.0.block.attn1.to_q.weight"
GATE = "double_stream_blocks.0.block.ff_i.gate.weight"


def matrix(*shape, std=0.02):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * std


def made(tensors, requested, kept_dtypes=(*SIXTEEN, E4M3), kind=Kind.TRANSFORMER):
    result = {}
    for piece in pieces(tensors, kind, requested, kept_dtypes):
        tensors = piece.make()
        assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == dict(piece.layout)
        result |= tensors
    return result


@pytest.mark.parametrize(
    ("requested", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_plain_types_are_for_all_tensors(requested, dtype):
    tensors = {MATRIX: matrix(8, 64), GATE: matrix(4, 64), "x.bias": matrix(8).bfloat16()}
    for name, tensor in made(tensors, requested).items():
        assert torch.equal(tensor, tensors[name].to(dtype))
    dense = quantize(tensors[MATRIX], "Q8_0").dense(torch.float32)
    assert torch.equal(made({MATRIX: quantize(tensors[MATRIX], "Q8_0")}, requested)[MATRIX], dense.to(dtype))


def test_what_leaves_the_range_of_fp16_is_named():
    with pytest.raises(ConfigurationError, match=f"{MATRIX} has values up to 70000, too large for fp16"):
        made({MATRIX: torch.tensor([[1.0, -70000.0]])}, "fp16")


def test_plain_fp8_is_a_cast_of_the_matrices():
    tensors = {MATRIX: matrix(8, 64), GATE: matrix(4, 64), "x.bias": matrix(8)}
    result = made(tensors, "fp8")
    assert torch.equal(result[MATRIX].float(), tensors[MATRIX].to(E4M3).float())
    assert {name: tensor.dtype for name, tensor in result.items()} == {
        MATRIX: E4M3,
        GATE: torch.float32,
        "x.bias": torch.float32,
    }
    assert made({MATRIX: torch.tensor([[1e6, -1e6]])}, "fp8")[MATRIX].float().tolist() == [[448.0, -448.0]]


@pytest.mark.parametrize("factor", [1.0, 1e-5, 1e5, 0.0])
def test_scaled_fp8_as_comfy_reads_it(factor):
    """comfy/utils.py, convert_old_quants: the marker's type and count, `scale_weight`; then weight · scale."""
    tensors = {MATRIX: matrix(8, 64) * factor, "final_layer.linear.weight": matrix(8, 64), "x.bias": matrix(8)}
    result = made(tensors, "fp8_scaled")
    scale = MATRIX.removesuffix("weight") + "scale_weight"
    assert result.keys() == tensors.keys() | {scale, "scaled_fp8"}
    assert (result["scaled_fp8"].dtype, result["scaled_fp8"].numel()) == (E4M3, 2)
    assert (result[scale].dtype, result[scale].shape) == (torch.float32, ())
    assert result[MATRIX].dtype is E4M3
    read, exact = result[MATRIX].float() * result[scale], tensors[MATRIX]
    # half a step of three bits, or of the smallest number; 1e-6 for the scale's own rounding
    assert ((read - exact).abs() <= exact.abs() * (2**-4 + 1e-6) + result[scale] * 2**-10).all()
    assert torch.isfinite(read).all()


def test_eight_bits_are_for_what_is_multiplied_with():
    shape = torch.Size([8, 8])
    whole = {
        Kind.TRANSFORMER: ["final_layer.linear.weight", "x_embedder.proj.weight", GATE],
        Kind.CLIP: ["text_model.embeddings.token_embedding.weight", "text_projection.weight"],
        Kind.T5: ["shared.weight", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"],
        Kind.LLAMA: ["model.embed_tokens.weight"],
    }
    multiplied = {
        Kind.TRANSFORMER: ["caption_projection.0.linear.weight", MATRIX],
        Kind.CLIP: ["text_model.encoder.layers.0.mlp.fc1.weight"],
        Kind.T5: ["encoder.block.0.layer.1.DenseReluDense.wo.weight"],
        Kind.LLAMA: ["model.layers.0.mlp.down_proj.weight"],
    }
    assert not any(is_matrix(name, shape, kind) for kind, names in whole.items() for name in names)
    assert all(is_matrix(name, shape, kind) for kind, names in multiplied.items() for name in names)
    assert not is_matrix(MATRIX, torch.Size([8]), Kind.TRANSFORMER)


def test_as_stored_where_the_target_can_hold_it():
    plain = {MATRIX: matrix(8, 64).to(E4M3), "x.bias": matrix(8).half()}
    assert all(tensor is plain[name] for name, tensor in made(plain, None).items())
    assert made(plain, None, SIXTEEN)[MATRIX].dtype is torch.bfloat16  # which holds every float8

    scale = torch.tensor(0.25)
    scaled = Quantized("fp8", {"data": plain[MATRIX], "scale": scale}, torch.Size([8, 64]))
    kept = made({MATRIX: scaled}, None)
    assert kept[MATRIX] is plain[MATRIX]
    assert kept[MATRIX.removesuffix("weight") + "scale_weight"] == scale
    assert torch.equal(made({MATRIX: scaled}, None, SIXTEEN)[MATRIX], plain[MATRIX].bfloat16() * scale)

    for scheme in ("int8", "nf4", "Q4_0", "fp8"):  # a scale for each row, or blocks
        value = quantize(matrix(8, 64), scheme)
        assert torch.equal(made({MATRIX: value}, None)[MATRIX], value.dense(torch.bfloat16))


def test_the_autoencoder_goes_back_to_fluxs_names():
    module = AutoencoderKL(
        block_out_channels=(8, 16, 24, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=16,
    )
    state = module.state_dict()
    ours = rename.for_comfy(state, Kind.VAE)
    expected = comfy_files.flux_names(state, 4)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    for back in (autoencoder_names(ours), convert_ldm_vae_checkpoint(ours, module.config)):
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)
    assert rename.for_diffusers(state, Kind.VAE) == state


def test_llama_is_a_model_with_a_place_for_its_head():
    named = rename.for_diffusers({"norm.weight": torch.ones(2)}, Kind.LLAMA)
    assert list(named) == list(rename.for_comfy({"norm.weight": torch.ones(2)}, Kind.LLAMA)) == ["model.norm.weight"]
    assert list(llama_names(named)) == ["norm.weight"]
