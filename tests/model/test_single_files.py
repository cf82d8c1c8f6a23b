"""Nano in other publishers' formats generates the embedded model's image, to the last bit if nothing is rounded."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tiny
import torch
from diffusers import AutoencoderKL

import comfy_files
import llama_cpp
from hidream.errors import CheckpointError
from hidream.formats.gguf_encoders import LLAMA_ROPE
from hidream.formats.gguf_file import write_gguf
from hidream.model.checkpoint.checkpoint import Checkpoint, embedded, load_transformer, weights_hash
from hidream.model.checkpoint.encoders import check_fit, load_encoder, load_tokenizer
from hidream.model.latents.autoencoder import load_autoencoder
from hidream.model.loading import load
from hidream.model.pipeline import generate
from hidream.model.text.text_encoders import load_text_encoders
from hidream.request import ImageRequest
from hidream.types import Size, Variant, WeightFormat

CPU, F32 = torch.device("cpu"), torch.float32
REQUEST = ImageRequest("flat style a fox in the snow", Size(256, 256), seed=7, steps=2)


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    return comfy_files.write_comfy(tmp_path_factory.mktemp("comfy"))


def loaded(dev, checkpoint, storage=None):
    return dataclasses.replace(
        dev,
        transformer=load_transformer(checkpoint, CPU, F32, storage),
        vae=load_autoencoder(checkpoint, CPU, F32),
        text=load_text_encoders(checkpoint, CPU, F32, [storage] * 4),
    )


@pytest.mark.slow
@pytest.mark.parametrize("storage", [None, WeightFormat.STORED])
def test_comfys_files_draw_the_same_image(dev, comfy, storage):
    pixels = generate(loaded(dev, comfy, storage), REQUEST).pixels.astype(int)
    difference = np.abs(pixels - generate(dev, REQUEST).pixels).max()
    assert difference <= (0 if storage is None else 1)  # what stays in the file is not packed: products round otherwise


def test_gguf_draws_the_same_image(dev, comfy, tmp_path):
    write_gguf(
        tmp_path / "model.gguf",
        comfy_files.tensors_of("transformer"),
        "F16",
        {"config": comfy_files.config_of("transformer")},
    )
    checkpoint = dataclasses.replace(comfy, folder=tmp_path / "model.gguf")
    model = dataclasses.replace(dev, transformer=load_transformer(checkpoint, CPU, F32))
    assert np.array_equal(generate(model, REQUEST).pixels, generate(dev, REQUEST).pixels)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["t5", "t5encoder", "llama"])
@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("storage", [None, WeightFormat.COMPUTE])
def test_encoders_of_llama_cpp_answer_as_those_they_were_made_of(tmp_path, architecture, kind, storage):
    part, field = ("text_encoder_4", "llama") if architecture == "llama" else ("text_encoder_3", "t5")
    original = load_encoder(embedded(Variant.DEV), part, CPU, F32)
    file = llama_cpp.write(tmp_path / "a.gguf", original, architecture, kind)
    ours = load_encoder(Checkpoint(**{field: file}), part, CPU, F32, storage)
    held = [module for module in ours.modules() if getattr(module, "quantized", None) is not None]
    assert bool(held) is (storage is None and kind != "F32")
    tokens = torch.arange(4, 68)[None]
    with torch.no_grad():
        exact = original(tokens, output_hidden_states=True).hidden_states
        answers = ours(tokens, output_hidden_states=True).hidden_states
        theirs = llama_cpp.rounded(original, kind)(tokens, output_hidden_states=True).hidden_states
    for answer, their, other in zip(answers, theirs, exact, strict=True):
        assert tiny.relative(answer, their) <= (0 if kind == "F32" else 1e-5)
        assert (tiny.relative(answer, other) > 1e-4) is (kind != "F32")  # and it was in fewer bits


def test_a_llama_with_llama_3_1s_rotation(tmp_path):
    """Which nano's has not: the published factors, and a table that is another model's."""
    for positions in (8192, 48):
        rope = {**LLAMA_ROPE, "original_max_position_embeddings": positions}
        config = json.loads(comfy_files.config_of("text_encoder_4")) | {"rope_parameters": rope}
        own = comfy_files.write(tmp_path / "own", comfy_files.tensors_of("text_encoder_4"), json.dumps(config))
        original = load_encoder(Checkpoint(llama=own), "text_encoder_4", CPU, F32)
        file = llama_cpp.write(tmp_path / "a.gguf", original, "llama")
        ours = load_encoder(Checkpoint(llama=file), "text_encoder_4", CPU, F32)
        tokens = torch.arange(4, 68)[None]
        with torch.no_grad():
            difference = tiny.relative(ours(tokens).last_hidden_state, original(tokens).last_hidden_state)
        assert difference <= (0 if positions == 8192 else 1e-5)
        plain = load_encoder(embedded(Variant.DEV), "text_encoder_4", CPU, F32)
        with torch.no_grad():
            assert tiny.relative(plain(tokens).last_hidden_state, ours(tokens).last_hidden_state) > 1e-3


def test_gguf_encoders_draw_the_same_image_also_from_a_models_folder(dev, tmp_path):
    folder = comfy_files.write_comfy_folder(tmp_path / "models")
    for part, name, architecture in (("text_encoder_3", "t5xxl", "t5encoder"), ("text_encoder_4", "llama", "llama")):
        (folder / "text_encoders" / f"{name}.safetensors").unlink()
        (folder / "clip").mkdir(exist_ok=True)
        original = load_encoder(embedded(Variant.DEV), part, CPU, F32)
        llama_cpp.write(folder / "clip" / f"{name}-f32.gguf", original, architecture)
    checkpoint = Checkpoint(folder).of_variant(Variant.DEV)
    assert checkpoint.t5 == folder / "clip" / "t5xxl-f32.gguf"
    with pytest.raises(
        CheckpointError, match=r"come without tokenizers: .* --tokenizers. A tokenizer inside a GGUF file is not read"
    ):
        load_tokenizer(checkpoint, "tokenizer_4")
    model = loaded(dev, dataclasses.replace(checkpoint, tokenizers=embedded(Variant.DEV).folder))
    assert np.array_equal(generate(model, REQUEST).pixels, generate(dev, REQUEST).pixels)


def test_eight_bits_draw_nearly_the_same_image(dev):
    exact = generate(dev, REQUEST).pixels.astype(float)
    model = dataclasses.replace(dev, transformer=load_transformer(embedded(Variant.DEV), CPU, F32, WeightFormat.INT8))
    difference = np.abs(generate(model, REQUEST).pixels - exact)
    assert 0 < difference.mean() < 4  # of 255


@pytest.mark.slow
def test_the_public_way_takes_a_single_file_of_a_transformer(dev, tmp_path):
    nano = embedded(Variant.DEV).folder
    file = comfy_files.write_comfy(tmp_path / "dev").folder
    with pytest.raises(CheckpointError, match="single file, which has no 'vae'"):
        load(Variant.DEV, file)
    own = Checkpoint(nano, transformer=file)
    assert own.part("transformer") == file
    assert own.part("vae") == nano / "vae"
    assert np.array_equal(generate(load(Variant.DEV, own), REQUEST).pixels, generate(dev, REQUEST).pixels)


def test_the_name_of_the_weights_follows_every_file(comfy, tmp_path):
    files = comfy.weight_files()
    assert len(files) == 6
    assert weights_hash(files, None) == weights_hash(comfy.weight_files(), tmp_path / "cache.json")
    other = comfy_files.write(
        tmp_path / "t5.safetensors", comfy_files.scaled_fp8(comfy_files.tensors_of("text_encoder_3"))
    )
    assert weights_hash(dataclasses.replace(comfy, t5=other).weight_files(), None) != weights_hash(files, None)


@pytest.mark.parametrize("part", ["text_encoder_3", "text_encoder_4"])
@pytest.mark.parametrize("storage", [None, WeightFormat.COMPUTE])
def test_scaled_fp8_encoders(dev, tmp_path, part, storage):
    published = comfy_files.scaled_fp8(comfy_files.tensors_of(part))
    file = comfy_files.write(tmp_path / "scaled.safetensors", published, comfy_files.config_of(part))
    field = {"text_encoder_3": "t5", "text_encoder_4": "llama"}[part]
    nano = embedded(Variant.DEV).folder
    ours = load_encoder(Checkpoint(nano, **{field: file}), part, CPU, F32, storage)
    held = [module for module in ours.modules() if getattr(module, "quantized", None) is not None]
    assert bool(held) is (storage is None)

    rounded = comfy_files.write(
        tmp_path / "plain.safetensors", comfy_files.unscaled(published), comfy_files.config_of(part)
    )
    plain = load_encoder(Checkpoint(nano, **{field: rounded}), part, CPU, F32)
    exact = load_encoder(embedded(Variant.DEV), part, CPU, F32)
    tokens = dev.text.tokenizers[2](["a fox in the snow"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        answers = [model(tokens).last_hidden_state for model in (ours, plain, exact)]
    assert tiny.relative(answers[0], answers[1]) <= 1e-5
    assert 1e-4 < tiny.relative(answers[0], answers[2]) < 0.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_encoders_kept_in_another_type_compute_in_ours(dtype):
    """T5 turns its inputs into the type of its last product's weight, if it is a parameter: it must not be one."""
    nano = embedded(Variant.DEV)
    stored = load_encoder(nano, "text_encoder_3", CPU, dtype, WeightFormat.STORED)
    plain = load_encoder(nano, "text_encoder_3", CPU, dtype, WeightFormat.COMPUTE)
    tokens = torch.arange(4, 20)[None]
    with torch.no_grad():
        ours, theirs = stored(tokens).last_hidden_state, plain(tokens).last_hidden_state
    assert ours.dtype == theirs.dtype == dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("convert", [comfy_files.flux_names, None])
def test_the_autoencoder_of_flux_without_configuration(tmp_path, convert):
    torch.manual_seed(0)
    module = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    state = module.state_dict()
    file = comfy_files.write(tmp_path / "ae.safetensors", convert(state, 4) if convert else state)
    ours = load_autoencoder(Checkpoint(vae=file), CPU, F32)
    assert (ours.factor, ours.scaling, ours.shift) == (8, 0.3611, 0.1159)
    latent = torch.randn(1, 16, 4, 6)
    with torch.no_grad():
        assert torch.equal(ours.decode(latent), module.decode(latent / 0.3611 + 0.1159).sample)


def test_one_clip_in_the_others_place_is_named(tmp_path):
    config = json.loads(comfy_files.config_of("text_encoder")) | {"hidden_size": 1280}
    file = comfy_files.write(tmp_path / "clip.safetensors", comfy_files.tensors_of("text_encoder"), json.dumps(config))
    with pytest.raises(CheckpointError, match="is CLIP-G, 1280 wide; accepted as 'text_encoder': CLIP-L, 768 wide"):
        load_encoder(Checkpoint(clip_l=file), "text_encoder", CPU, F32)


def test_encoders_of_another_model_are_named(dev):
    config = dev.transformer.config
    t5, llama, pooled, layers = *config.caption_channels, config.text_emb_dim, len(config.llama_layers)
    check_fit(dev.text.encoders, config)
    for changes, message in [
        ({"text_emb_dim": 2048}, f"both CLIPs together has {pooled} channels; accepted by this transformer: 2048"),
        ({"caption_channels": (4096, llama)}, f"T5 has {t5}"),
        ({"caption_channels": (t5, 4096)}, f"Llama has {llama}"),
        (
            {"llama_layers": (*config.llama_layers[:-1], 31)},
            f"Llama has {layers} layers; accepted by this transformer: 32",
        ),
    ]:
        with pytest.raises(CheckpointError, match=message):
            check_fit(dev.text.encoders, dataclasses.replace(config, **changes))
