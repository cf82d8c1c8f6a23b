"""What was converted computes and draws what it did before: to the last bit, or within the error of its type."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny
import torch

from hidream.formats.convert import convert, format_of
from hidream.formats.detect import read
from hidream.formats.quantized import Quantized
from hidream.formats.targets import Format, Wish
from hidream.model.inferred import published_config
from hidream.model.pipeline import generate
from hidream.model.text import load_text_encoders
from hidream.model.vae import load_autoencoder
from hidream.model.weights import Checkpoint, embedded, load_transformer
from hidream.types import ImageRequest, Size, Variant

CPU, F32 = torch.device("cpu"), torch.float32
NANO = embedded(Variant.DEV).folder
REQUEST = ImageRequest("flat style a fox in the snow", Size(256, 256), seed=7, steps=2)


def converted(source, target, kind=None, to=None, shard_bytes=5 * 10**6):
    convert(source, target, Wish(to or format_of(target), kind, shard_bytes), published_config, lambda *_: None)
    return target


def drawn(dev, transformer):
    return generate(dataclasses.replace(dev, transformer=transformer), REQUEST).pixels


def test_through_all_formats_and_back_the_picture_is_the_same(dev, tmp_path):
    path = NANO / "transformer"
    for name in ("a.safetensors", "b.gguf", "sharded", "c.gguf", "d.safetensors", "back"):
        path = converted(path, tmp_path / name)
    assert np.array_equal(
        drawn(dev, load_transformer(Checkpoint(transformer=path), CPU, F32)), drawn(dev, dev.transformer)
    )


@pytest.mark.parametrize(("name", "kind", "most"), [("a.safetensors", "fp8_scaled", 10), ("a.gguf", "Q8_0", 4)])
def test_fewer_bits_draw_nearly_the_same_picture(dev, tmp_path, name, kind, most):
    path = converted(NANO / "transformer", tmp_path / name, kind)
    transformer = load_transformer(Checkpoint(transformer=path), CPU, F32)
    assert any(isinstance(getattr(module, "quantized", None), Quantized) for module in transformer.modules())
    difference = np.abs(drawn(dev, transformer) - drawn(dev, dev.transformer).astype(float))
    assert 0 < difference.mean() < most  # of 255


def test_comfys_files_of_a_whole_folder_draw_the_same_picture(dev, tmp_path):
    converted(NANO, tmp_path, to=Format.COMFY)
    texts = tmp_path / "text_encoders"
    checkpoint = Checkpoint(
        tmp_path / "diffusion_models" / "dev.safetensors",
        llama=texts / "llama_3.1_8b_instruct.safetensors",
        vae=tmp_path / "vae" / "ae.safetensors",
        clip_l=texts / "clip_l_hidream.safetensors",
        clip_g=texts / "clip_g_hidream.safetensors",
        t5=texts / "t5xxl.safetensors",
        tokenizers=NANO,
    )
    model = dataclasses.replace(
        dev,
        transformer=load_transformer(checkpoint, CPU, F32),
        vae=load_autoencoder(checkpoint, CPU, F32),
        text=load_text_encoders(checkpoint, CPU, F32),
    )
    assert np.array_equal(generate(model, REQUEST).pixels, generate(dev, REQUEST).pixels)


@pytest.mark.parametrize("name", ["a.safetensors", "a.gguf", "folder"])
def test_a_tiny_transformer_answers_as_diffusers_own(tmp_path, name):
    model = tiny.reference()
    model.save_pretrained(tmp_path / "published")
    path = converted(tmp_path / "published", tmp_path / name)
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in read(path).tensors.items())
    ours = load_transformer(Checkpoint(transformer=path), CPU, F32)
    x = tiny.inputs(2, 16, 16)
    with torch.no_grad():
        assert tiny.relative(ours(*x), -model(*x, return_dict=False)[0]) <= 1e-5
