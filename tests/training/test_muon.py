"""Muon's steps: equal in all directions, and as often as wanted."""

from __future__ import annotations

import pytest
import torch

from muon import Muon, Optimisers, orthogonal


@pytest.mark.parametrize("shape", [(2, 24, 64), (3, 64, 24), (1, 32, 32)])
def test_orthogonal_keeps_directions_and_levels_their_sizes(shape):
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonal(matrices)
    sizes = left.mT @ found @ right.mT  # diagonal: the same directions
    assert (sizes - torch.diag_embed(sizes.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3
    large = sizes.diagonal(dim1=1, dim2=2)[:, : min(shape[1:]) * 3 // 4]  # the least may need more rounds
    assert large.min() > 0.6
    assert large.max() < 1.3


def test_every_other_step_only_gathers_momentum():
    """Steps of any direction: only every second moves, along with what came before."""
    weight = torch.nn.Parameter(torch.zeros(4, 6))
    muon = Muon([weight], lr=0.1, every=2)
    gradients = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    weight.grad = gradients[0]
    muon.step()
    assert not weight.any()
    weight.grad = gradients[1]
    muon.step()
    average = 0.05 * (0.95 * gradients[0] + gradients[1])
    ahead = torch.lerp(gradients[1], average, 0.95)
    assert torch.allclose(weight, -0.1 * orthogonal(ahead[None])[0], atol=1e-5)


def test_ends_and_vectors_are_left_to_adamw():
    module = torch.nn.ModuleDict({"first": torch.nn.Linear(3, 4), "block": torch.nn.Linear(4, 4)})
    optimisers = Optimisers(module, lambda step: 1.0, 1e-3, 1e-2, ends=("first",))
    _, muon = optimisers._optimisers
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 4)]
    before = [p.detach().clone() for p in module.parameters()]
    optimisers.step(module["block"](module["first"](torch.ones(2, 3))).square().sum())
    assert all((p != old).any() for p, old in zip(module.parameters(), before, strict=True))
