"""The text encoders equal the stock pipeline's `encode_prompt`, and report truncation."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import transformers
from reference import stock_pipeline
from tokenizers import Regex, normalizers

from hidream.errors import CheckpointError
from hidream.model.checkpoint.checkpoint import embedded
from hidream.parts import ENCODERS
from hidream.request import Prompts
from hidream.types import Variant

LONG = "a very long prompt with words that nobody has taught it, " * 20
ELSEWHERE = torch.device("cpu:1")  # the same memory, yet another device: what is moved there is copied


@pytest.fixture(scope="module")
def stock():
    return stock_pipeline(Variant.DEV)


def equal_to_stock(ours, t5, llama, pooled):
    torch.testing.assert_close(ours.t5, t5, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.pooled, pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.llama, llama, rtol=1e-4, atol=1e-4)


def identical(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("prompts", [["flat style a car in the desert"], ["", "3d a frog"], [LONG], [LONG, "short"]])
def test_equals_stock_encode_prompt(dev, stock, prompts):
    t5, _, llama, _, pooled, _ = stock.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=dev.text.tokens
    )
    equal_to_stock(dev.text.encode(prompts), t5, llama, pooled)
    equal_to_stock(dev.text.embed(prompts).embeds, t5, llama, pooled)


def test_each_encoder_may_be_told_something_else(dev, stock):
    t5, not_t5, llama, not_llama, pooled, not_pooled = stock.encode_prompt(
        "a frog",
        prompt_2="a red frog",
        prompt_3="a frog on a hill",
        prompt_4="3d a green frog",
        negative_prompt="blue",
        negative_prompt_4="sad",
        max_sequence_length=dev.text.tokens,
    )
    told = Prompts("a frog", clip_g="a red frog", t5="a frog on a hill", llama="3d a green frog")
    ours = dev.text.embed([told, Prompts("blue", llama="sad")]).embeds
    equal_to_stock(ours, torch.cat((t5, not_t5)), torch.cat((llama, not_llama), dim=1), torch.cat((pooled, not_pooled)))


def test_an_empty_text_of_its_own_is_an_empty_text(dev):
    told = dev.text.embed([Prompts("a frog", clip_l="", t5="")]).embeds
    frog, empty = dev.text.embed(["a frog"]).embeds, dev.text.embed([""]).embeds
    width = empty.pooled.shape[1] // 2
    assert torch.equal(told.t5, empty.t5)
    assert torch.equal(told.llama, frog.llama)
    assert torch.equal(told.pooled, torch.cat((empty.pooled[:, :width], frog.pooled[:, width:]), dim=1))


def test_what_else_is_asked_for_does_not_change_a_bit(dev):
    alone, together = dev.text.embed(["a frog"]).embeds, dev.text.embed(["", "a frog", LONG]).embeds
    assert torch.equal(together.t5[1:2], alone.t5)
    assert torch.equal(together.llama[:, 1:2], alone.llama)
    assert torch.equal(together.pooled[1:2], alone.pooled)


def test_texts_that_go_together_say_the_same_but_for_rounding(dev):
    each = dev.text.embed(["a frog", "", LONG, "a frog"]).embeds
    batch = dataclasses.replace(dev.text, together=True, cache=None).embed(["a frog", "", LONG, "a frog"]).embeds
    for ours, truth in zip(batch, each, strict=True):
        assert (ours - truth).abs().max() <= 1e-5 * truth.abs().max()


def test_length_comes_from_the_tokenizers(dev):
    assert dev.text.limits == tuple(tokenizer.model_max_length for tokenizer in dev.text.tokenizers)
    assert dev.text.limits == (dev.text.tokens,) * 4
    assert dev.text.encode(["a"]).t5.shape[1] == dev.text.tokens


def test_what_is_cut_is_told_and_what_fits_is_not(dev):
    warnings = dev.text.embed([Prompts("a frog"), Prompts("a cat", llama=LONG)]).warnings
    assert len(warnings) == 1
    assert "for Llama: " in warnings[0]
    assert f"{dev.text.tokens} are read" in warnings[0]
    assert dev.text.embed(["flat style a sailboat in the ocean", ""]).warnings == ()
    all_of_it = " ".join(dev.text.embed([LONG]).warnings)
    assert all(part.title in all_of_it for part in ENCODERS)


def test_a_tokenizer_that_pads_on_the_left_gives_the_same(dev):
    left = transformers.AutoTokenizer.from_pretrained(embedded(Variant.DEV).folder / "tokenizer_4", padding_side="left")
    text = dataclasses.replace(dev.text, cache=None, tokenizers=(*dev.text.tokenizers[:3], left))
    assert identical(text.embed(["a frog"]).embeds, dev.text.embed(["a frog"]).embeds)


def test_a_tokenizer_that_panics_fails_that_text_alone(dev):
    """Its regular expressions come with the model folder; a search that does not end is given up within a second."""
    slow = copy.deepcopy(dev.text.tokenizers[0])
    slow.backend_tokenizer.normalizer = normalizers.Replace(Regex("(a|a)*$"), "")
    text = dataclasses.replace(dev.text, tokenizers=(slow, *dev.text.tokenizers[1:]), cache=None)
    with pytest.raises(RuntimeError, match=r"^the tokenizer failed on a text \(PanicException\)$") as raised:
        text.embed(["a" * 40 + "b"])
    assert raised.value.__suppress_context__, "its words may quote the text"
    assert identical(text.embed(["frog"]).embeds, dev.text.embed(["frog"]).embeds)


def test_embeddings_come_in_the_type_that_is_asked_for(dev):
    exact = dev.text.embed(["a frog"]).embeds
    text = dataclasses.replace(dev.text, cache=None, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert identical(text.embed(["a frog"]).embeds, [part.bfloat16() for part in exact])


@pytest.mark.parametrize("inference", [False, True])
def test_in_turn_only_one_encoder_is_on_the_device(dev, inference):
    def away():
        """Which encoders compute with other memory than at home."""
        return [i for i, encoder in enumerate(dev.text.encoders) if places(encoder) != home[i]]

    def places(encoder):
        return [value.data_ptr() for value in (*encoder.parameters(), *encoder.buffers())]

    home = [places(encoder) for encoder in dev.text.encoders]
    seen = []
    hooks = [encoder.register_forward_pre_hook(lambda *_: seen.append(away())) for encoder in dev.text.encoders]
    text = dataclasses.replace(dev.text, cache=None, device=ELSEWHERE, sequential_offload=True)
    with torch.inference_mode(inference):
        visited = text.embed(["a frog", "a cat"]).embeds
        for hook in hooks:
            hook.remove()
        assert seen == [[0], [0], [1], [1], [2], [2], [3], [3]]
        assert away() == []
        assert identical(visited, dev.text.embed(["a frog", "a cat"]).embeds)


def test_the_clip_of_other_models_is_refused(dev):
    stock_clip = transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(hidden_size=32, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1)
    )
    assert stock_clip.config.max_position_embeddings == 77  # OpenAI's CLIP is transformers' default
    folder = embedded(Variant.DEV).folder / "tokenizer"
    long = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=131072)
    with pytest.raises(CheckpointError, match=r"CLIP-G has 77 positions, and 128 are needed.*clip_g_hidream"):
        dataclasses.replace(
            dev.text,
            tokenizers=(long, long, long, long),
            encoders=(_with_positions(248), stock_clip, *dev.text.encoders[2:]),
        )


def _with_positions(positions):
    return transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            hidden_size=32,
            intermediate_size=32,
            num_attention_heads=2,
            num_hidden_layers=1,
            max_position_embeddings=positions,
        )
    )
