"""A folder of LoRAs: read with the model, named by requests, and what of a file is not used is said."""

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hidream.errors import CheckpointError, ConfigurationError, InvalidInput
from hidream.model.loading import load
from hidream.model.pipeline import generate
from hidream.types import ImageRequest, LoraUse, Size, Variant

LAYER = "double_stream_blocks.0.block.attn1.to_q"


def write(path, layers, width=192):
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in layers:
        tensors[f"transformer.{layer}.lora_A.weight"] = torch.randn(2, width, generator=random)
        tensors[f"transformer.{layer}.lora_B.weight"] = torch.randn(width, 2, generator=random)
    save_file(tensors, path)


def asked(*loras):
    return ImageRequest("a fox", Size(256, 256), seed=1, steps=1, loras=loras)


def test_a_request_names_what_the_folder_has(tmp_path, caplog):
    write(tmp_path / "ink.safetensors", [LAYER, "transformer_blocks.7.to_q"])
    (tmp_path / "notes.txt").write_text("passed over")
    with caplog.at_level(logging.INFO, "hidream.model.loading"):
        model = load(Variant.DEV, device="cpu", loras=tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert (
        "lora_read ink (peft): 1 of 2 layers matched; not in this model: transformer.transformer_blocks.7.to_q" in said
    )
    plain, inked, zero = (generate(model, asked(*use)).pixels for use in ((), (LoraUse("ink"),), (LoraUse("ink", 0),)))
    assert not np.array_equal(plain, inked)
    assert np.array_equal(plain, zero)
    with pytest.raises(InvalidInput, match="loras names 'water'; accepted: ink"):
        generate(model, asked(LoraUse("water")))


def test_what_does_not_fit_ends_the_start(tmp_path):
    with pytest.raises(ConfigurationError, match=r"the folder of LoRAs .* does not exist"):
        load(Variant.DEV, device="cpu", loras=tmp_path / "absent")
    write(tmp_path / "ink.safetensors", [LAYER], width=64)
    with pytest.raises(CheckpointError, match="ink is made for another model"):
        load(Variant.DEV, device="cpu", loras=tmp_path)
