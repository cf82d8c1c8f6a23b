"""The text encoders give what the stock pipeline's `encode_prompt` gives."""

from __future__ import annotations

import pytest
import torch
from reference import stock_pipeline

from hidream.types import Variant

LONG = "a very long prompt with words that nobody has taught it, " * 20


@pytest.mark.parametrize("prompts", [["flat style a car in the desert"], ["", "3d a frog"], [LONG]])
def test_equals_stock_encode_prompt(dev, prompts):
    t5, _, llama, _, pooled, _ = stock_pipeline(Variant.DEV).encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=16
    )
    ours = dev.text.encode(prompts)
    torch.testing.assert_close(ours.t5, t5, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.pooled, pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.llama, llama, rtol=1e-4, atol=1e-4)


def test_length_comes_from_the_tokenizers(dev):
    assert dev.text.tokens == 16
    assert dev.text.encode(["a"]).t5.shape[1] == 16
