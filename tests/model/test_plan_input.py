"""The input of the memory plan matches the files: sizes, bits, LoRAs, and the bytes that are computed in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hidream.errors import CheckpointError
from hidream.formats.convert import convert
from hidream.formats.targets import ConversionOptions, Format
from hidream.model.checkpoint.checkpoint import Checkpoint, config_of_transformer, embedded
from hidream.model.checkpoint.inferred import published_config
from hidream.model.memory.candidates import Hardware, Options
from hidream.model.memory.footprint import BLOCKS, PUBLISHED, VAE, ModelShape
from hidream.model.memory.plan import plan
from hidream.model.memory.plan_input import PlanRequest, complete, lora_values, partial
from hidream.types import LORAS_MAX, Size, Variant, WeightFormat

NANO = embedded(Variant.DEV)
ASKED = PlanRequest(Variant.DEV, Size(1024, 1024), None, torch.float32)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory) -> Path:
    """Nano's transformer as Q8_0, with its configuration beside it."""
    folder = tmp_path_factory.mktemp("gguf")
    (folder / "config.json").write_text((NANO.part("transformer") / "config.json").read_text())
    options = ConversionOptions(Format.GGUF, "Q8_0", None, False)
    convert(NANO.part("transformer"), folder / "x.gguf", options, published_config, lambda *_: None)
    return folder / "x.gguf"


def test_a_whole_checkpoint_is_measured_as_its_modules_are(dev):
    shape, options = complete(NANO, ASKED)
    assert shape == ModelShape.of(dev.transformer.config, dev.text.encoders, dev.vae.module, dev.vae.factor)
    assert (options.compute_bytes, options.decode_bytes, options.lora_bytes) == (4, 4, 0)


def test_the_file_that_is_named_is_planned(quantised):
    shape, options = partial(Checkpoint(quantised), ASKED)
    assert shape == dataclasses.replace(PUBLISHED, transformer=shape.transformer)
    assert shape.transformer.dim == 192
    assert (options.transformer, options.encoders) == (WeightFormat.STORED, None)
    assert options.stored_bits == pytest.approx(9, abs=0.5)  # 8.5, and small tensors that stay whole
    assert options.encoder_bits == 16
    with pytest.raises(CheckpointError, match="has no 'vae'"):
        complete(Checkpoint(quantised), ASKED)


def test_without_any_file_the_published_model_is_planned():
    asked = dataclasses.replace(ASKED, dtype=torch.bfloat16)
    shape, options = partial(Checkpoint(), asked)
    assert shape == PUBLISHED
    assert plan(Hardware.card(16, 64), shape, options).parts == (
        plan(Hardware.card(16, 64), PUBLISHED, Options.of(Variant.DEV, Size(1024, 1024))).parts
    )


def test_the_type_that_is_computed_in_counts():
    card = Hardware.card(80, 200)
    half, single = (
        partial(Checkpoint(), dataclasses.replace(ASKED, dtype=d))[1] for d in (torch.float16, torch.float32)
    )
    assert (half.compute_bytes, half.decode_bytes) == (2, 4)  # the autoencoder needs float32's range
    assert plan(card, PUBLISHED, half).part(VAE).nbytes == plan(card, PUBLISHED, single).part(VAE).nbytes
    bfloat = dataclasses.replace(half, decode_bytes=2)
    assert plan(card, PUBLISHED, half).part(VAE).nbytes == 2 * plan(card, PUBLISHED, bfloat).part(VAE).nbytes
    assert plan(card, PUBLISHED, single).part(BLOCKS).nbytes > plan(card, PUBLISHED, half).part(BLOCKS).nbytes


def pair(rank, width):
    layer = "transformer.double_stream_blocks.0.block.attn1.to_q"
    return {f"{layer}.lora_A.weight": torch.zeros(rank, width), f"{layer}.lora_B.weight": torch.zeros(width, rank)}


@pytest.mark.slow
def test_as_many_loras_as_a_request_may_name_are_reserved_for(tmp_path):
    for i in range(LORAS_MAX + 2):
        save_file(pair(i + 1, 192), tmp_path / f"{i}.safetensors")
    save_file(pair(9999, 9999), tmp_path / "of-another-model.safetensors")
    save_file(
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(4, 9999)}, tmp_path / "flux.safetensors"
    )
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    (tmp_path / "folder.safetensors").mkdir()
    expected = sum(384 * rank for rank in range(3, LORAS_MAX + 3))
    config = config_of_transformer(NANO, NANO.read("transformer"))
    assert lora_values(tmp_path, config) == expected
    assert lora_values(None, config) == 0
    asked = dataclasses.replace(ASKED, loras=tmp_path, dtype=torch.bfloat16)
    assert complete(NANO, asked)[1].lora_bytes == 2 * expected
