"""An offloaded module computes the same on the device, and has its own tensors again afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import T5Config, T5EncoderModel

from hidream.formats.quantized import Quantized, Scheme
from hidream.model.memory.offload import on_device
from hidream.model.network.linear import Linear

ELSEWHERE = torch.device("cpu:1")  # the same memory, yet another device: what is moved there is copied


class Part(nn.Module):
    """Everything that can be held: a parameter, a buffer, a quantised weight, and one weight twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.eighth = Linear(8, 8), nn.Linear(8, 8), Linear(8, 8)
        self.second.weight = self.first.weight
        self.register_buffer("offset", torch.randn(8), persistent=False)
        data = torch.randint(-127, 128, (8, 8), dtype=torch.int8)
        self.eighth.store(Quantized(Scheme.INT8, {"data": data, "scale": torch.rand(8, 1) / 100}, data.shape))

    def forward(self, x):
        return self.eighth(self.second(self.first(x)) + self.offset)


def places(part):
    held = (*part.parameters(), *part.buffers(), *part.eighth.quantized.parts.values())
    return [value.data_ptr() for value in held]


@pytest.mark.parametrize("inference", [False, True])
def test_computes_the_same_with_other_memory(inference):
    part, x = Part(), torch.randn(3, 8)
    home, expected = places(part), part(x)
    with torch.inference_mode(inference), on_device(part, ELSEWHERE):
        assert not set(places(part)) & set(home)
        assert part.first.weight is part.second.weight
        assert torch.equal(part(x), expected)
    assert places(part) == home
    assert torch.equal(part(x), expected)


def test_comes_home_from_an_error():
    part = Part()
    home, weight = places(part), part.first.weight
    with pytest.raises(ZeroDivisionError), on_device(part, ELSEWHERE):
        raise ZeroDivisionError
    assert places(part) == home
    assert part.first.weight is weight
    assert weight.requires_grad


def test_comes_home_when_it_comes_only_half_the_way():
    class Heavy:
        def to(self, *_, **__):
            raise torch.OutOfMemoryError("full")

    part = Part()
    home, light = places(part), part.eighth.quantized
    part.eighth.quantized = Quantized(Scheme.INT8, {"data": Heavy()}, light.shape)
    with pytest.raises(torch.OutOfMemoryError), on_device(part, ELSEWHERE):
        raise AssertionError("never here")
    part.eighth.quantized = light
    assert places(part) == home


def test_where_it_is_already_nothing_is_copied():
    part = Part()
    home = places(part)
    with on_device(part, torch.device("cpu")):
        assert places(part) == home


def test_an_encoder_of_transformers_keeps_what_it_ties():
    encoder = T5EncoderModel(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).eval()
    encoder.requires_grad_(False)
    ids = torch.arange(8)[None]
    expected = encoder(ids).last_hidden_state
    with on_device(encoder, ELSEWHERE):
        assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
        assert torch.equal(encoder(ids).last_hidden_state, expected)
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
