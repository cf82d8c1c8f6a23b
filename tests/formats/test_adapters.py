"""Adapters of one layer: from parts to ΔW as in LyCORIS, and what is refused."""

from __future__ import annotations

import pytest
import torch
from lycoris.functional import loha

from hidream.errors import CheckpointError
from hidream.formats.adapters import HADAMARD, Hadamard, adapter, tensors_of
from hidream.formats.peft_settings import PeftSettings

A, B = torch.randn(4, 6), torch.randn(10, 4)
LOHA = dict(zip(HADAMARD, (B, A, B + 1, A - 1), strict=True))


def made(parts, settings=None):
    return adapter("transformer.x", "x", parts, PeftSettings(settings))


@pytest.mark.parametrize("alpha", [None, 3.0])
@pytest.mark.parametrize("axes", [(), (1, 1)])
@pytest.mark.parametrize("tucker", [False, True])
def test_loha_is_lycoriss(tucker, axes, alpha):
    shapes = [(4, 10), (4, 6), (4, 10), (4, 6)] if tucker else [(10, 4), (4, 6), (10, 4), (4, 6)]
    parts = {name: torch.randn(*shape) for name, shape in zip(HADAMARD, shapes, strict=True)}
    cores = {name: torch.randn(4, 4, *axes) for name in ("hada_t1", "hada_t2")} if tucker else {}
    given = parts | cores | ({} if alpha is None else {"alpha": torch.tensor(alpha)})
    result = made(given)
    assert isinstance(result, Hadamard)
    assert (result.shape, result.scale) == ((10, 6), 1.0 if alpha is None else alpha / 4)
    up_1, down_1, up_2, down_2 = parts.values()
    cores = [core.flatten(1) for core in cores.values()] or [None, None]
    expected = loha.diff_weight(down_1, up_1, down_2, up_2, *cores, gamma=result.scale)
    torch.testing.assert_close(result.delta(), expected)


def test_ranks_of_loha_may_differ():
    result = made(LOHA | {"hada_w2_a": B[:, :3], "hada_w2_b": A[:3]})
    torch.testing.assert_close(result.delta(), (B @ A) * (B[:, :3] @ A[:3]))


def test_pefts_loha_takes_the_rank_of_the_configuration():
    settings = {"peft_type": "LOHA", "r": 4, "alpha": 6, "alpha_pattern": {"x": 2}}
    assert made(LOHA, settings).scale == 0.5


def test_what_an_adapter_holds():
    magnitude = torch.ones(10, 1)
    assert len(tensors_of(made(LOHA))) == 4
    assert sum(tensor.nbytes for tensor in tensors_of(made(LOHA | {"magnitude": magnitude}))) == 2 * (24 + 40) * 4 + 40


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"hada_w1_a": B, "hada_w1_b": A}, "incomplete: it has only hada_w1_a, hada_w1_b; accepted: all parts"),
        (LOHA | {"hada_t1": A}, "incomplete"),
        (LOHA | {"hada_w1_b": A[:3]}, r"shapes \[10, 4\] and \[3, 6\]; accepted: parts of one rank"),
        (LOHA | {"hada_w2_a": B[:9]}, r"products of shapes \[10, 6\] and \[9, 6\]; accepted: equal shapes"),
        (LOHA | {"hada_w2_b": A / 0}, "values that are not finite in hada_w2_b"),
        (LOHA | {"hada_t1": A, "hada_t2": A}, "accepted: parts of one rank"),
        ({"w1": A, "w2_a": B * 1e30, "w2_b": A * 1e30}, "factors whose product is not finite in float32"),
        ({"up": B, "down": A.to(torch.int8)}, "type torch.int8 in down"),
        ({"up": B.bool(), "down": A}, "type torch.bool in up"),
        ({"up": B, "down": A, "alpha": A}, r"an alpha of type torch.float32 and shape \[4, 6\]; accepted: one number"),
        ({"up": B, "down": A, "alpha": A[:0, 0]}, r"an alpha of .* shape \[0\]; accepted: one number"),
        ({"up": B, "down": A, "alpha": torch.tensor(1j)}, "an alpha of type torch.complex64"),
        ({"up": B, "down": A, "alpha": torch.tensor(torch.nan)}, "scale nan; accepted: a finite alpha"),
        ({"up": B, "down": A, "magnitude": B[:, 0] / 0}, "not finite in magnitude"),
    ],
)
def test_errors(parts, message):
    with pytest.raises(CheckpointError, match=message):
        made(parts)
