"""The linear layer: equal to torch's own if nothing is quantised or changed."""

from __future__ import annotations

import torch
from torch import nn

from hidream.model.network.linear import Linear


def test_begins_with_the_weights_of_torchs_own():
    torch.manual_seed(0)
    theirs = nn.Linear(6, 4)
    torch.manual_seed(0)
    ours = Linear(6, 4)
    assert ours.weight.equal(theirs.weight)
    assert ours.bias.equal(theirs.bias)


def test_draws_nothing_on_the_meta_device(monkeypatch):
    drawn = []
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda tensor, **_: drawn.append(tensor))
    Linear(6, 4, device="meta")
    assert drawn == []
    Linear(6, 4)
    assert len(drawn) == 1
