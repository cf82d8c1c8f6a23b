"""The warning about a long prompt says what stock diffusers says, and what the tokenizer really truncated."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import stock_pipeline
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hidream.model.text.prompts import truncation_of, warnings
from hidream.request import Prompts
from hidream.types import Variant

LONG = "Flat style, a sailboat in the ocean beside a zyxwvutsrqponmlkjihgfedcba, and very many clouds above the hills."


@pytest.fixture(scope="module")
def words():
    """A tokenizer with one token for each word, and no special ones."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")


def test_says_what_stock_diffusers_says(dev):
    stock, said = stock_pipeline(Variant.DEV), []
    logger = logging.getLogger("diffusers.pipelines.hidream_image.pipeline_hidream_image")
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        stock._get_t5_prompt_embeds(LONG, max_sequence_length=dev.text.tokens)
    finally:
        logger.removeHandler(handler)
    lost = truncation_of(dev.text.tokenizers[2], LONG, dev.text.tokens)
    (line,) = said  # "… is set to  20 tokens: ['<what was left out, from the token on>']"
    theirs = LONG.lower().index(line.split("['")[1].removesuffix("']").strip())
    ours = LONG.index(lost.words)
    assert (lost.limit, lost.tokens) == (dev.text.tokens, len(dev.text.tokenizers[2](LONG)["input_ids"]))
    assert LONG[ours:theirs].isalpha()  # the part of a halved word that was read
    assert LONG[ours - 1] == " "


def test_counts_and_quotes_at_a_word(words):
    assert truncation_of(words, "one two three four", 4) is None
    assert truncation_of(words, "one two three four five", 3) == (3, 5, "four five")
    assert truncation_of(words, "one two three " + "x" * 100, 3).words == "x" * 60
    assert truncation_of(words, " ".join(["word"] * 50), 3).words == " ".join(["word"] * 6)


def test_a_word_that_is_halved_is_named_whole(dev):
    tokenizer = dev.text.tokenizers[3]
    text = "a sailboat in the ocean with zyxwvutsrqponmlkjih on it"  # unknown to nano: a token for each letter
    limit = dev.text.tokens
    kept = tokenizer.decode(tokenizer(text, max_length=limit, truncation=True)["input_ids"])
    last = kept.rpartition(" ")[2]
    assert last
    assert last != "zyxwvutsrqponmlkjih"
    assert "zyxwvutsrqponmlkjih".startswith(last)
    assert truncation_of(tokenizer, text, limit).words == "zyxwvutsrqponmlkjih on it"


def test_scripts_without_spaces_are_quoted_from_the_cut(dev):
    text = "一艘帆船在海洋上航行阳光照耀着远处的山丘和云朵非常美丽的一幅画面五彩缤纷"
    lost = truncation_of(dev.text.tokenizers[3], text * 3, dev.text.tokens)
    assert lost.words
    assert lost.words in text * 3


def test_white_space_at_the_end_is_no_loss(dev):
    tokenizer = dev.text.tokenizers[3]
    assert len(tokenizer("a frog" + " " * 60)["input_ids"]) > dev.text.tokens
    assert truncation_of(tokenizer, "a frog" + " " * 60, dev.text.tokens) is None


def test_encoders_that_read_the_same_are_named_together(words):
    tokenizers, limits = [words] * 4, (2, 2, 3, 9)
    lines = warnings([Prompts("one two three four"), Prompts("a b", llama="c " * 12)], tokenizers, limits)
    assert lines == (
        "the prompt is too long for CLIP-L, CLIP-G: 4 tokens, of which 2 are read; ignored from 'three four' on",
        "the prompt is too long for T5: 4 tokens, of which 3 are read; ignored from 'four' on",
        "the prompt is too long for Llama: 12 tokens, of which 9 are read; ignored from 'c c c' on",
    )


def test_the_same_prompt_twice_is_told_once(words):
    assert len(warnings([Prompts("one two three")] * 2, [words] * 4, (2, 2, 2, 2))) == 1


@pytest.mark.slow
@given(st.text(max_size=200))
def test_any_text_is_measured(dev, text):
    for tokenizer in dev.text.tokenizers:
        lost = truncation_of(tokenizer, text, dev.text.tokens)
        assert lost is None or (lost.tokens > dev.text.tokens and lost.words)
        assert lost is not None or len(text.split()) <= dev.text.tokens
