"""A converted model generates the same image: to the last bit, or within the error of its type."""

from __future__ import annotations

import dataclasses
import functools
import shutil

import numpy as np
import pytest
import tiny
import torch
from diffusers import HiDreamImagePipeline

import comfy_files
from hidream.errors import CheckpointError, ConfigurationError
from hidream.formats.convert import convert, format_of
from hidream.formats.detect import read
from hidream.formats.quantized import Quantized
from hidream.formats.targets import ConversionOptions, Format
from hidream.model.checkpoint.checkpoint import Checkpoint, embedded, load_transformer
from hidream.model.checkpoint.inferred import published_config
from hidream.model.latents.autoencoder import load_autoencoder
from hidream.model.loading import load
from hidream.model.pipeline import generate
from hidream.model.text.text_encoders import load_text_encoders
from hidream.request import ImageRequest
from hidream.types import Size, Variant

CPU, F32 = torch.device("cpu"), torch.float32
NANO = embedded(Variant.DEV).folder
REQUEST = ImageRequest("flat style a fox in the snow", Size(256, 256), seed=7, steps=2)


def converted(source, target, kind=None, to=None, shard_bytes=5 * 10**6):
    convert(
        source, target, ConversionOptions(to or format_of(target), kind, shard_bytes), published_config, lambda *_: None
    )
    return target


def drawn(dev, transformer):
    return generate(dataclasses.replace(dev, transformer=transformer), REQUEST).pixels


@pytest.mark.slow
def test_through_all_formats_and_back_the_image_is_the_same(dev, tmp_path):
    path = NANO / "transformer"
    for name in ("a.safetensors", "b.gguf", "sharded", "c.gguf", "d.safetensors", "back"):
        path = converted(path, tmp_path / name)
    assert np.array_equal(
        drawn(dev, load_transformer(Checkpoint(transformer=path), CPU, F32)), drawn(dev, dev.transformer)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "most"), [("a.safetensors", "fp8_scaled", 10), ("a.gguf", "Q8_0", 4)])
def test_fewer_bits_draw_nearly_the_same_image(dev, tmp_path, name, kind, most):
    path = converted(NANO / "transformer", tmp_path / name, kind)
    transformer = load_transformer(Checkpoint(transformer=path), CPU, F32)
    assert any(isinstance(getattr(module, "quantized", None), Quantized) for module in transformer.modules())
    difference = np.abs(drawn(dev, transformer) - drawn(dev, dev.transformer).astype(float))
    assert 0 < difference.mean() < most  # of 255


def test_comfys_files_of_a_whole_folder_draw_the_same_image(dev, tmp_path):
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


def generated_by(checkpoint):
    return generate(load(Variant.DEV, checkpoint), dataclasses.replace(REQUEST, size=Size(512, 512))).pixels


@functools.cache
def nanos_image():
    return generated_by(embedded(Variant.DEV))


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    return converted(NANO, tmp_path_factory.mktemp("comfy") / "models", to=Format.COMFY)


@pytest.mark.slow
def test_what_was_written_for_comfy_is_read_back(dev, comfy):
    """Case 21. With its tokenizers, and with the size that nano draws best, which stands in the file itself."""
    model = load(Variant.DEV, comfy)
    assert (model.best_tokens, model.refines) == (dev.best_tokens, dev.refines)
    assert np.array_equal(generated_by(comfy), nanos_image())


@pytest.mark.slow
def test_what_was_written_for_comfy_is_converted_again(comfy, tmp_path):
    """Case 21. To a folder of diffusers, which is as nano's own, and from there on to all others."""
    back = converted(comfy, tmp_path / "back", to=Format.DIFFUSERS)
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4"):
        ours, theirs = read(back / part).tensors, read(NANO / part).tensors
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        assert (back / part / "config.json").read_bytes() == (NANO / part / "config.json").read_bytes()
    for name in ("model_index.json", "scheduler/scheduler_config.json", "tokenizer_4/tokenizer.json"):
        assert (back / name).read_bytes() == (NANO / name).read_bytes()
    assert np.array_equal(generated_by(back), nanos_image())

    HiDreamImagePipeline.from_pretrained(back, dtype=torch.float16)
    again = converted(converted(back, tmp_path / "gguf", to=Format.GGUF), tmp_path / "again", to=Format.COMFY)
    retyped = converted(again, tmp_path / "retyped", "fp32", to=Format.COMFY)
    assert (retyped / "diffusion_models" / "gguf.safetensors").is_file()
    assert np.array_equal(generated_by(retyped), nanos_image())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.safetensors", "a.gguf", "folder of shards", "again.safetensors"])
def test_a_transformer_alone_draws_as_it_does_in_its_folder(dev, tmp_path, name):
    """The size that it draws best stands in the whole model's index, and goes with it."""
    source = NANO / "transformer"
    if name == "again.safetensors":
        source = converted(source, tmp_path / "once")
    path = converted(source, tmp_path / name)
    named = dict.fromkeys(("llama", "t5", "clip_l", "clip_g", "vae", "tokenizers"), NANO)
    model = load(Variant.DEV, Checkpoint(path, **named))
    assert (model.best_tokens, model.refines) == (dev.best_tokens, dev.refines)


@pytest.mark.slow
def test_a_model_without_llama_goes_to_comfy_and_back(tmp_path):
    """As the official folders are."""
    shutil.copytree(NANO, tmp_path / "official", ignore=shutil.ignore_patterns("text_encoder_4", "tokenizer_4"))
    comfy = converted(tmp_path / "official", tmp_path / "models", to=Format.COMFY)
    back = converted(comfy, tmp_path / "back", to=Format.DIFFUSERS)
    own = Checkpoint(back, llama=NANO)
    assert np.array_equal(generated_by(own), nanos_image())
    with pytest.raises(CheckpointError, match="no text_encoder_4 in text_encoders"):
        load(Variant.DEV, comfy)
    assert load(Variant.DEV, Checkpoint(comfy, llama=NANO)).best_tokens == load(Variant.DEV).best_tokens


def test_what_comfy_has_becomes_gguf_that_is_read(comfy, dev, tmp_path):
    path = converted(comfy, tmp_path / "gguf", to=Format.GGUF)
    assert np.array_equal(generated_by(path), nanos_image())


def test_a_folder_of_one_of_comfys_files_is_that_part(comfy, dev):
    """Its numbers stand in the file, and no config.json beside it."""
    model = load_autoencoder(Checkpoint(vae=comfy / "vae"), CPU, F32)
    assert model.factor == dev.vae.factor


@pytest.mark.slow
def test_a_models_folder_of_comfy_needs_tokenizers_from_elsewhere(tmp_path):
    folder = comfy_files.write_comfy_folder(tmp_path / "models")
    with pytest.raises(CheckpointError, match=r"`\[models\] tokenizers` or --tokenizers"):
        load(Variant.DEV, folder)
    ours = generated_by(Checkpoint(folder, tokenizers=NANO))
    converted(folder, tmp_path / "back", to=Format.DIFFUSERS)
    assert np.array_equal(generated_by(Checkpoint(tmp_path / "back", tokenizers=NANO)), ours)


def test_two_variants_in_one_models_folder(comfy, tmp_path):
    folder = tmp_path / "models"
    shutil.copytree(comfy, folder)
    converted(embedded(Variant.FULL).folder, folder, to=Format.COMFY)
    full = Checkpoint(folder).of_variant(Variant.FULL)
    assert full.part("transformer") == folder / "diffusion_models" / "full.safetensors"
    assert full.part("vae") == folder / "vae" / "ae.safetensors"
    with pytest.raises(CheckpointError, match=r"2 files .*dev.safetensors.*full.safetensors; .* named with --variant"):
        converted(folder, tmp_path / "back", to=Format.DIFFUSERS)
    convert(
        folder,
        tmp_path / "back",
        ConversionOptions(Format.DIFFUSERS, variant=Variant.FULL),
        published_config,
        lambda *_: None,
    )
    ours = read(tmp_path / "back" / "transformer").tensors
    theirs = read(embedded(Variant.FULL).folder / "transformer").tensors
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_tokenizers_of_others_are_not_replaced(comfy, tmp_path):
    (tmp_path / "tokenizers" / "tokenizer").mkdir(parents=True)
    (tmp_path / "tokenizers" / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"tokenizer/tokenizer.json exists; accepted: a new path, or --force"):
        converted(comfy, tmp_path, to=Format.COMFY)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizers"]
