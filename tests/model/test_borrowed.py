"""A transformer that computes with another program's layers, which here are those of our own."""

import dataclasses

import pytest
import torch
from torch import nn

from hidream.errors import CheckpointError
from hidream.model.network.borrowed import BorrowedTransformer, borrow, copy_of, is_copy, onednn_is_faster, size_of
from hidream.model.network.config import TransformerConfig
from hidream.model.network.transformer import Transformer

CONFIG = TransformerConfig(
    num_layers=1,
    num_single_layers=2,
    attention_head_dim=16,
    num_attention_heads=2,
    caption_channels=(12, 20),
    text_emb_dim=8,
    axes_dims_rope=(8, 4, 4),
    llama_layers=(0, 1, 1),
)


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    return Transformer(CONFIG).eval().requires_grad_(False)


def lend(layer, dtype):
    return layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)


def inputs(seed=1, batch=2, grid=(4, 6)):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    texts = (noise(batch, 5, 12), noise(2, batch, 5, 20), noise(batch, 8))
    return noise(batch, 16, 2 * grid[0], 2 * grid[1]), torch.full((batch,), 700.0), *texts


@pytest.mark.parametrize("lent", [lend, None], ids=["lent", "called"])
def test_it_computes_what_their_model_does(theirs, lent):
    ours = BorrowedTransformer(borrow(CONFIG, theirs, lent))
    with torch.inference_mode():
        torch.testing.assert_close(ours.velocity(*inputs()), theirs(*inputs()))


@pytest.mark.parametrize("lent", [lend, None], ids=["lent", "called"])
def test_it_holds_no_weights_and_sees_theirs_as_they_are(theirs, lent):
    ours = BorrowedTransformer(borrow(CONFIG, theirs, lent))
    assert not list(ours.transformer.parameters())
    for layer in theirs.modules():
        if getattr(layer, "weight", None) is not None:
            layer.weight = nn.Parameter(layer.weight * 1.25, requires_grad=False)
    with torch.inference_mode():
        torch.testing.assert_close(ours.velocity(*inputs()), theirs(*inputs()))


def test_it_multiplies_in_the_type_of_its_input(theirs):
    ours = BorrowedTransformer(borrow(CONFIG, theirs.bfloat16(), lend))
    with torch.inference_mode():
        torch.testing.assert_close(ours.velocity(*inputs()), theirs.float()(*inputs()))


def test_what_a_prompt_gives_is_computed_once_in_a_run(theirs):
    ours = BorrowedTransformer(borrow(CONFIG, theirs))
    calls = []
    theirs.caption_projection[0]["linear"].register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        for _ in range(3):  # equal tensors, not the same
            for prompt in (1, 2):
                ours.velocity(*inputs(prompt))
        assert len(calls) == 2
        ours.velocity(*inputs(1, grid=(6, 4)))  # as many tokens, in another shape
        assert len(calls) == 3
        torch.testing.assert_close(ours.velocity(*inputs(1, grid=(6, 4))), theirs(*inputs(1, grid=(6, 4))))
        ours.forget()
        calls.clear()
        ours.velocity(*inputs(1))
        assert len(calls) == 1


def test_only_the_latest_prompts_are_remembered(theirs):
    ours = BorrowedTransformer(borrow(CONFIG, theirs))
    calls = []
    theirs.caption_projection[0]["linear"].register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        for prompt in (1, 2, 3, 4, 5, 5, 4, 1):
            ours.velocity(*inputs(prompt))
    assert len(calls) == 6  # 1 was the oldest of five


def test_a_model_without_our_layers_is_refused(theirs):
    with pytest.raises(CheckpointError, match=r"no layer double_stream_blocks\.1\.block\.adaLN_modulation\.1"):
        borrow(dataclasses.replace(CONFIG, num_layers=2, llama_layers=(0, 0, 1, 1)), theirs)


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_computes_the_same_and_knows_when_it_is_old(theirs, dtype, onednn):
    theirs.to(dtype)
    copy = copy_of(CONFIG, theirs, lend, torch.float32, onednn=onednn)
    assert sum(each.numel() for each in copy.parameters()) * 4 == size_of(theirs, torch.float32)
    with torch.inference_mode():
        ours = BorrowedTransformer(copy)
        torch.testing.assert_close(ours.velocity(*inputs()), theirs.float()(*inputs()))
    assert is_copy(copy, theirs, lend)
    with torch.inference_mode():
        theirs.single_stream_blocks[1]["block"].ff_i.experts[3].w2.weight[0, 0] += 1e-3
    assert not is_copy(copy, theirs, lend)


def test_products_are_measured_where_there_are_two_kinds():
    assert onednn_is_faster(torch.float32) in (True, False)
    assert not onednn_is_faster(torch.float64)
