"""The mixture of experts: routing, order, and the count of products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU, MoEGate

from hidream.model.network import moe
from hidream.model.network.kernels import Experts, Kernels
from hidream.model.network.linear import all_rows


@pytest.mark.parametrize("active", [1, 2, 3])
def test_grouped_equals_the_definition(active):
    g = torch.Generator().manual_seed(active)
    x, first, second = (
        torch.randn(37, 16, generator=g),
        torch.randn(4, 64, 16, generator=g),
        torch.randn(4, 16, 32, generator=g),
    )
    probability, expert = torch.randn(37, 4, generator=g).softmax(-1).topk(active)
    expected = torch.stack(
        [
            sum(
                p * (F.silu(first[e, :32] @ token) * (first[e, 32:] @ token)) @ second[e].T
                for p, e in zip(ps, es, strict=True)
            )
            for token, ps, es in zip(x, probability, expert, strict=True)
        ]
    )
    for compute in (moe.grouped_experts, moe.dense_experts):
        result = compute(x, probability, expert, first, second)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-4)


def test_an_expert_without_tokens_is_no_problem():
    x, first, second = torch.randn(5, 8), torch.randn(4, 16, 8), torch.randn(4, 8, 8)
    probability, expert = torch.ones(5, 2), torch.tensor([[1, 3]] * 5)
    grouped = moe.grouped_experts(x, probability, expert, first, second)
    torch.testing.assert_close(grouped, moe.dense_experts(x, probability, expert, first, second))


def test_grouped_multiplies_only_the_chosen_rows(monkeypatch):
    rows = []

    def counting(x, weight, ends):
        rows.append(x.shape[0])
        return original(x, weight, ends)

    original = moe.grouped_mm
    monkeypatch.setattr(moe, "grouped_mm", counting)
    layer = moe.MixtureOfExperts(dim=16, hidden=64, experts=4, active=2)
    layer(torch.randn(10, 16))
    assert rows == [20, 20]  # tokens · active, not tokens · experts


@pytest.mark.parametrize("tokens", [1, 30])  # of one token, two experts see nothing
def test_one_after_another_equals_diffusers_and_the_stack(tokens):
    torch.manual_seed(0)
    layer = moe.MixtureOfExperts(dim=16, hidden=64, experts=4, active=2).requires_grad_(False)
    theirs = MOEFeedForwardSwiGLU(16, 64, num_routed_experts=4, num_activated_experts=2).eval()
    theirs.load_state_dict(layer.state_dict())
    for name, module in layer.named_modules():
        module.published = name
    x, deltas = torch.randn(tokens, 16), {"experts.2.w1": [lambda x, y: y.tanh()], "experts.1.w2": [lambda x, y: y]}
    stacked, changed = layer(x), layer(x, all_rows(deltas))
    looped = moe.MixtureOfExperts(16, 64, 4, 2, Kernels(experts=Experts.PER_EXPERT)).requires_grad_(False)
    looped.load_state_dict(layer.state_dict())
    for name, module in looped.named_modules():
        module.published = name
    torch.testing.assert_close(looped(x), theirs(x[None])[0])
    torch.testing.assert_close(looped(x), stacked)
    torch.testing.assert_close(looped(x, all_rows(deltas)), changed)


def test_result_of_a_token_does_not_depend_on_the_others():
    torch.manual_seed(0)
    layer = moe.MixtureOfExperts(dim=16, hidden=64, experts=4, active=2)
    x = torch.randn(30, 16)
    torch.testing.assert_close(layer(x)[:7], layer(x[:7]))


def test_gradients_reach_every_chosen_expert():
    torch.manual_seed(0)
    layer = moe.MixtureOfExperts(dim=16, hidden=64, experts=4, active=2)
    x = torch.randn(30, 16)
    layer(x).square().sum().backward()
    grouped = [p.grad.clone() for p in layer.parameters()]
    dense = moe.MixtureOfExperts(16, 64, 4, 2, Kernels(experts=Experts.DENSE))
    dense.load_state_dict(layer.state_dict())
    dense(x).square().sum().backward()
    for ours, plain in zip(grouped, (p.grad for p in dense.parameters()), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_gradients_of_a_plain_sum_reach_them_too():
    """Its gradient is one number in every place, which is no tensor of its own."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 16, requires_grad=True), torch.randn(2, 16, 8, requires_grad=True)
    moe.grouped_mm(x, weight, torch.tensor([1, 4], dtype=torch.int32)).sum().backward()
    torch.testing.assert_close(x.grad[1:], weight[1].sum(-1).detach().expand(3, -1))
    torch.testing.assert_close(weight.grad[0], x[0].detach()[:, None].expand(-1, 8))


@pytest.mark.parametrize("weight", [(4, 16, 8), (10, 8)], ids=["products", "gradients"])
def test_compilers_are_told_the_shapes_that_there_will_be(weight):
    x = torch.randn(10, 16) if len(weight) == 3 else torch.randn(10, 16).mT
    ends = torch.tensor([1, 4, 4, 10], dtype=torch.int32)
    given = (x, torch.randn(weight), ends)
    torch.library.opcheck(moe._grouped_mm, given, test_utils=("test_schema", "test_faketensor"))


def test_balance_loss_is_diffusers_own():
    torch.manual_seed(0)
    layer = moe.MixtureOfExperts(dim=16, hidden=64, experts=4, active=2)
    theirs = MoEGate(16, num_routed_experts=4, num_activated_experts=2, aux_loss_alpha=0.5).train()
    theirs.load_state_dict(layer.gate.state_dict())
    x = torch.randn(60, 16)
    with moe.balance_losses(layer) as losses:
        layer(x)
    torch.testing.assert_close(losses[0] * 0.5, theirs(x.view(2, 30, 16))[2])
    layer(x)
    assert len(losses) == 1  # collected within the block only


def test_autocast_reaches_the_grouped_product():
    torch.manual_seed(0)
    layer = moe.MixtureOfExperts(dim=16, hidden=64, experts=4, active=2)
    x = torch.randn(30, 16, requires_grad=True)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = layer(x)
    rough.sum().backward()
    assert x.grad is not None
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
