"""An image with values that are not finite is an error that names type, LoRAs and weights, never a black file."""

import dataclasses
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hidream.errors import NotFinite
from hidream.model.checkpoint.checkpoint import embedded
from hidream.model.finite import broken_weights
from hidream.model.loading import load
from hidream.model.network import bfloat16
from hidream.model.pipeline import generate
from hidream.request import ImageRequest, LoraUse
from hidream.types import Mode, Size, Variant

LAYER = "double_stream_blocks.0.block.attn1.to_out"


def asked(**changes):
    return dataclasses.replace(ImageRequest("a fox", Size(256, 256), seed=1, steps=2), **changes)


def changed(tmp_path, key, change, dtype="float32"):
    """Nano with one weight of its transformer changed in the file, of which a CPU has copies that are laid out anew."""
    nano = embedded(Variant.DEV)
    (tmp_path / "transformer").mkdir()
    shutil.copy(nano.part("transformer") / "config.json", tmp_path / "transformer")
    state = {name: tensor.clone() for name, tensor in nano.read("transformer").tensors.items()}
    change(state[key])
    save_file(state, tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    own = dataclasses.replace(nano, transformer=tmp_path)
    return load(Variant.DEV, own, device="cpu", dtype=dtype)


@contextmanager
def broken(tensor):
    """Let one value of a weight not be a number, as long as the context lasts."""
    kept = tensor.view(-1)[0].clone()
    tensor.view(-1)[0] = torch.nan
    try:
        yield
    finally:
        tensor.view(-1)[0] = kept


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with a LoRA whose products leave any type's range, and one whose do not."""
    folder = tmp_path_factory.mktemp("loras")
    random = torch.Generator().manual_seed(0)
    for name, scale in (("glow", 0.1), ("glare", 1e15)):
        down, up = torch.randn(2, 192, generator=random), torch.randn(192, 2, generator=random)
        keys = {f"transformer.{LAYER}.lora_A.weight": down * scale, f"transformer.{LAYER}.lora_B.weight": up * scale}
        save_file(keys, folder / f"{name}.safetensors")
    return load(Variant.DEV, device="cpu", loras=folder)


def test_a_lora_that_overflows_is_named(model):
    generate(model, asked(loras=(LoraUse("glow"),)))
    with pytest.raises(NotFinite, match=r"latents .* computed in float32; with the LoRAs glow \(weight 0.5\), glare"):
        generate(model, asked(loras=(LoraUse("glow", 0.5), LoraUse("glare", 10))))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_weight_of_the_transformer_is_named(tmp_path, value):
    model = changed(tmp_path, "double_stream_blocks.0.block.attn1.to_q.weight", lambda weight: weight.fill_(value))
    with pytest.raises(NotFinite, match=r"latents .* computed in float32; .* transformer: .*to_q.weight"):
        generate(model, asked())
    assert broken_weights(model).startswith("transformer: ")


def test_a_bad_weight_of_the_autoencoder_is_named(model):
    expected = r"pixels .*; with weights that are not finite themselves, vae: decoder"
    with broken(next(model.vae.module.decoder.parameters())), pytest.raises(NotFinite, match=expected):
        generate(model, asked())


@pytest.mark.parametrize("i", range(4))
def test_a_bad_weight_of_any_text_encoder_is_named(model, i):
    *_, last = model.text.encoders[i].parameters()
    request = asked(prompt=f"a fox {i}")  # whose embeddings are not known yet
    with broken(last), pytest.raises(NotFinite, match=f"text_encoder{('', '_2', '_3', '_4')[i]}: "):
        generate(model, request)


def test_whole_models_have_no_broken_weights(dev):
    assert broken_weights(dev) is None


@pytest.mark.slow
@pytest.mark.parametrize("steps", [8, pytest.param(None, marks=pytest.mark.long)])
@pytest.mark.parametrize("variant", Variant)
def test_float16_draws_what_float32_draws(dev, full, variant, steps):
    """Where float16 does not reach (nano's decoder multiplies 18,000 into more), float32 is used."""
    half = load(variant, device="cpu", dtype="float16")
    assert half.vae.dtype is torch.float32
    request = asked(size=Size(512, 512), steps=steps)
    exact = {Variant.DEV: dev, Variant.FULL: full}.get(variant) or load(variant, device="cpu")
    drawn, expected = (generate(model, request).pixels.astype(int) for model in (half, exact))
    assert expected.std() > 20  # something is drawn
    assert np.abs(drawn - expected).mean() < 4


def test_float16_is_named_where_it_ends(tmp_path):
    model = changed(tmp_path, "double_stream_blocks.0.block.attn1.to_v.weight", lambda w: w.mul_(3e4), "float16")
    with pytest.raises(NotFinite, match=r"computed in float16; float16 ends at 65,504; accepted: bfloat16 or float32"):
        generate(model, asked())


def test_other_modes_name_their_own_type(model):
    with_copy = dataclasses.replace(
        model, bfloat16_copy=bfloat16.copy_of(model.transformer)
    )  # whether it is faster here or not
    with pytest.raises(NotFinite, match="computed in bfloat16; with the LoRAs glare"):
        generate(with_copy, asked(mode=Mode.TURBO, loras=(LoraUse("glare", 10),)))
