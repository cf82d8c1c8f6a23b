"""Streamed blocks: the same results, at most two blocks on the device, and the host copies are unchanged."""

from __future__ import annotations

import weakref

import pytest
import tiny
import torch

from hidream.formats.quantized import Scheme, quantize
from hidream.model.memory import phases, streaming
from hidream.model.network.linear import Linear
from hidream.model.network.transformer import Transformer

AWAY = torch.device("cpu:1")  # to torch another device than "cpu", so that weights are really copied there


@pytest.fixture
def streamed():
    """A transformer of which everything that can be streamed is."""
    model = tiny.ours(tiny.reference(), kernels=tiny.SEPARATE)
    return with_streams(model)


def with_streams(model: Transformer, resident: tuple[int, ...] = ()) -> Transformer:
    phases.stream_blocks(model, AWAY, resident)
    phases.stream_conditioning(model, AWAY)
    return model


def test_streaming_changes_nothing(streamed):
    x = tiny.inputs(2, 16, 24)
    assert torch.equal(streamed(*x, padded=True), tiny.ours(tiny.reference(), kernels=tiny.SEPARATE)(*x, padded=True))


def test_quantised_weights_travel_as_they_are():
    plain, travelling = (tiny.ours(tiny.reference(), kernels=tiny.SEPARATE) for _ in range(2))
    for model in (plain, travelling):
        for layer in [m for m in model.modules() if isinstance(m, Linear)]:
            layer.store(quantize(layer.weight.data, Scheme.INT8))
    x = tiny.inputs(1, 8, 8)
    assert torch.equal(with_streams(travelling)(*x), plain(*x))


def test_two_blocks_at_most_are_away(streamed, monkeypatch):
    alive, most = weakref.WeakValueDictionary(), []
    copy_to = streaming.copy_to

    def counted(value, device):
        copy = copy_to(value, device)
        alive[id(copy)] = copy
        return copy

    monkeypatch.setattr(streaming, "copy_to", counted)
    for block in streamed.streams.blocks:
        most.append(sum(tensor.nbytes for tensor in alive.values()))
        assert id(block.attn1.to_q.weight) in alive
    sizes = [sum(p.nbytes for n, p in b.named_parameters() if "adaLN" not in n) for b in streamed.blocks]
    assert max(most) <= 2 * max(sizes)
    del block
    assert not alive


def test_some_stay_until_they_leave():
    model = with_streams(tiny.ours(tiny.reference(), kernels=tiny.SEPARATE), resident=(1, 3))
    x, home = tiny.inputs(1, 8, 8), [block.attn1.to_q.weight for block in model.blocks]
    expected = tiny.ours(tiny.reference(), kernels=tiny.SEPARATE)(*x)
    for _ in range(2):
        assert torch.equal(model(*x), expected)
        assert [b.attn1.to_q.weight is h for b, h in zip(model.blocks, home, strict=True)] == [1, 0, 1, 0, 1]
    model.streams.blocks.release()
    assert all(b.attn1.to_q.weight is h for b, h in zip(model.blocks, home, strict=True))


def test_home_is_as_it_was_even_after_an_error(streamed):
    before = {name: value.data_ptr() for name, value in streamed.named_parameters()}
    with pytest.raises(RuntimeError, match="in the middle"):
        for i, _ in enumerate(streamed.streams.blocks):
            if i == 2:
                raise RuntimeError("in the middle")
    for _ in streamed.streams.blocks:
        pass
    assert {name: value.data_ptr() for name, value in streamed.named_parameters()} == before
