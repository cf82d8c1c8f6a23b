"""The cache evicts as `functools.lru_cache` does, keeps its limit, and never changes a bit of an embedding."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hidream.model.text.cache import TextCache
from hidream.request import Prompts

ENTRY = torch.arange(4, dtype=torch.float32)


@given(st.lists(st.integers(0, 9)), st.integers(1, 6))
def test_forgets_as_lru_cache_does(keys, entries):
    cache, stock, misses = TextCache(entries * ENTRY.nbytes), lru_cache(maxsize=entries)(lambda key: key), 0
    for key in keys:
        stock(key)
        if cache.get(key) is None:
            misses += 1
            cache[key] = ENTRY + key
    expected = stock.cache_info()
    assert (misses, len(cache)) == (expected.misses, expected.currsize)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30))), st.integers(0, 200))
def test_never_holds_more_bytes_than_its_limit(puts, limit):
    cache, last = TextCache(limit), {}
    for key, length in puts:
        value = torch.full((length,), float(length))
        cache[key] = value
        last[key] = value
        assert cache.currsize <= limit
        if value.nbytes <= limit:
            assert torch.equal(cache.get(key), value)
    held = {key: cache.get(key) for key in last}
    assert cache.currsize == sum(value.nbytes for value in held.values() if value is not None)
    assert all(value is None or torch.equal(value, last[key]) for key, value in held.items())


def test_what_is_larger_than_the_limit_is_not_kept_and_drives_nothing_out():
    cache = TextCache(ENTRY.nbytes)
    cache["small"] = ENTRY
    cache["large"] = torch.zeros(5)
    assert cache.get("large") is None
    assert cache.get("small") is not None


def test_a_view_is_kept_without_what_it_looks_at():
    cache = TextCache(1000)
    cache["view"] = torch.zeros(100, 4)[0]
    assert cache.get("view").untyped_storage().nbytes() == 16


def test_entries_may_lie_on_another_device():
    cache = TextCache(1000, device=torch.device("cpu:1"))  # the same memory, yet another device: a copy
    cache["key"] = ENTRY
    assert cache.get("key").data_ptr() != ENTRY.data_ptr()
    assert torch.equal(cache.get("key"), ENTRY)


@pytest.fixture
def cached(dev):
    return dataclasses.replace(dev.text, cache=TextCache(10**8), identity="nano")


@pytest.fixture
def calls(dev):
    """Which encoders computed, in order."""
    seen = []
    hooks = [
        encoder.register_forward_pre_hook(lambda *_, i=i: seen.append(i)) for i, encoder in enumerate(dev.text.encoders)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def identical(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_cached_equals_computed_to_the_last_bit(dev, cached):
    prompts = ["a frog", "red", "a frog"]
    exact = dev.text.embed(prompts)
    cached.embed(["red"])
    for _ in range(2):
        assert identical(cached.embed(prompts).embeds, exact.embeds)
    # one batch rounds differently, by less than this
    for ours, batch in zip(exact.embeds, dev.text.encode(prompts), strict=True):
        assert (ours - batch).abs().max() <= 1e-6 * batch.abs().max()


def test_each_text_is_encoded_once(cached, calls):
    cached.embed(["a frog", "a frog", "red"])
    assert calls == [0, 0, 1, 1, 2, 2, 3, 3]
    cached.embed(["red", "a frog"])
    assert len(calls) == 8
    cached.embed([Prompts("red", llama="a new one")])
    assert calls[8:] == [3]
    assert len(cached.cache) == 4 * 2 + 1


def test_without_a_cache_equal_texts_are_encoded_once(dev, calls):
    dataclasses.replace(dev.text, cache=None).embed(["a frog", "a frog"])
    assert calls == [0, 1, 2, 3]


def test_a_cached_prompt_moves_no_encoder(cached, calls):
    text = dataclasses.replace(cached, device=torch.device("cpu:1"), sequential_offload=True)
    first = text.embed(["a frog"]).embeds
    encoder = dataclasses.replace(text, encoders=(*text.encoders[:3], _Immovable(text.encoders[3])))
    assert identical(encoder.embed(["a frog"]).embeds, first)
    with pytest.raises(AssertionError, match="moved"):
        encoder.embed(["a cat"])
    assert calls.count(3) == 1


def test_models_with_the_same_encoders_share_and_others_do_not(dev, cached, calls):
    cached.embed(["a frog"])
    dataclasses.replace(dev.text, cache=cached.cache, identity="nano").embed(["a frog"])
    assert len(calls) == 4
    dataclasses.replace(dev.text, cache=cached.cache, identity="other").embed(["a frog"])
    dataclasses.replace(dev.text, cache=cached.cache, identity="nano", dtype=torch.bfloat16).embed(["a frog"])
    assert len(calls) == 12


def test_writing_to_an_embedding_does_not_reach_the_cache(dev, cached):
    for part in cached.embed(["a frog"]).embeds:
        part.zero_()
    assert identical(cached.embed(["a frog"]).embeds, dev.text.embed(["a frog"]).embeds)


def test_a_cache_must_know_whose_it_is(dev):
    with pytest.raises(AssertionError, match="identity"):
        dataclasses.replace(dev.text, cache=TextCache(10), identity="")


class _Immovable:
    """An encoder that must not be moved."""

    def __init__(self, encoder):
        self.config, self.device = encoder.config, encoder.device

    def modules(self):
        raise AssertionError("moved")
