"""Rotary positions against diffusers', and the pad token's logit against real pad tokens."""

from __future__ import annotations

import math

import torch
from diffusers.models.transformers.transformer_hidream_image import HiDreamImageEmbedND, apply_rope

from hidream.model.network.attention import Rope, attend, rope_table, rotate


def test_rotation_equals_diffusers():
    grid, axes = (5, 7), (16, 8, 8)
    ids = torch.zeros(1, 35, 3)
    ids[0, :, 1] = torch.arange(5).repeat_interleave(7)
    ids[0, :, 2] = torch.arange(7).repeat(5)
    q = torch.randn(1, 35, 3, 32)
    theirs, _ = apply_rope(q, q, HiDreamImageEmbedND(theta=10000, axes_dim=axes)(ids))
    torch.testing.assert_close(rotate(q, rope_table(grid, 0, axes, q.device)), theirs, rtol=1e-6, atol=1e-6)


def test_text_is_not_turned():
    table = rope_table((4, 4), 6, (16, 8, 8), torch.device("cpu"))
    text = torch.randn(1, 6, 2, 32)
    assert torch.equal(rotate(text, Rope(table.cos[16:], table.sin[16:])), text)


def test_one_pad_token_stands_for_many():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 9, 2, 16) for _ in range(3))
    k[:, -1] = 0
    many = (
        torch.cat((k, k[:, -1:].expand(-1, 99, -1, -1)), 1),
        torch.cat((v, v[:, -1:].expand(-1, 99, -1, -1)), 1),
    )
    bias = torch.zeros(9)
    bias[-1] = math.log(100)
    torch.testing.assert_close(attend(q, k, v, bias), attend(q, *many, None), rtol=1e-5, atol=1e-6)
