"""Our transformer equals diffusers' on the same weights, and its fast forms equal its plain ones."""

from __future__ import annotations

import pytest
import tiny
import torch

from hidream.model.network.config import TransformerConfig
from hidream.model.network.kernels import Experts, Kernels
from hidream.model.network.ragged_batch import RaggedBatch
from hidream.model.network.transformer import Transformer

TOLERANCE = 1e-5  # of the output's largest value, float32


@pytest.fixture(scope="module")
def reference():
    return tiny.reference()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("batch", "height", "width"),
    [(1, 16, 16), (2, 16, 16), (1, 32, 32), (1, 2, 2), (1, 16, 24), (2, 24, 12), (1, 20, 8), (1, 4, 32)],
)
def test_equals_diffusers(reference, fused, batch, height, width):
    latent, *rest = tiny.inputs(batch, height, width)
    theirs = -reference(latent, *rest, return_dict=False)[0]
    ours = tiny.ours(reference, kernels=Kernels(fused=fused))(latent, *rest, padded=True)
    assert tiny.relative(ours, theirs) <= TOLERANCE


def test_padding_changes_what_is_not_square(reference):
    """The pad token matters: without it the answer is another one, so the test above does test it."""
    model, x = tiny.ours(reference), tiny.inputs(1, 16, 24)
    assert tiny.relative(model(*x), model(*x, padded=True)) > 1e-2


def test_parameter_names_are_the_published_ones(reference):
    published = {key: value.shape for key, value in reference.state_dict().items()}
    for kernels in (tiny.SEPARATE, tiny.FUSED):
        assert {k: v.shape for k, v in tiny.ours(reference, kernels=kernels).state_dict().items()} == published


def test_fused_weights_store_nothing_twice(reference):
    model = tiny.ours(reference)
    fused = [m.fused for m in model.modules() if getattr(m, "fused", None) is not None]
    wholes = torch.utils._pytree.tree_leaves(fused)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*wholes, *model.parameters())}
    assert len(wholes) > 20
    assert sum(storages.values()) == sum(p.nbytes for p in model.parameters())
    for block in (model.double_stream_blocks[0]["block"], model.single_stream_blocks[0]["block"]):
        block.ff_i.experts[3].w3.weight.fill_(5)
        assert (block.ff_i.fused[0][3].chunk(2)[1] == 5).all()


def test_real_configuration_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = Transformer(TransformerConfig())
    assert sum(p.numel() for p in model.parameters()) == 17_105_733_184


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24)])
def test_grouped_experts_equal_their_reference_implementation(reference, height, width):
    x = tiny.inputs(2, height, width)
    dense = tiny.ours(reference, kernels=Kernels(fused=True, experts=Experts.DENSE))
    assert tiny.relative(tiny.ours(reference)(*x), dense(*x)) <= TOLERANCE


def test_condition_once_equals_one_call(reference):
    model = tiny.ours(reference)
    latent, time, *text = tiny.inputs(1, 16, 24)
    prepared = model.condition(*text, (8, 12))
    assert torch.equal(model.velocity_at(latent, time, prepared), model(latent, time, *text))


def test_all_modulations_at_once_equal_one_by_one(reference):
    model = tiny.ours(reference)
    latent, _, *text = tiny.inputs(2, 16, 24)
    c, times = model.condition(*text, (8, 12)), [999.0, 500.5, 0.25]
    for time, modulation in zip(times, model.modulations(times, c), strict=True):
        alone = model.velocity_at(latent, torch.full((2,), time), c)
        assert tiny.relative(model.velocity([latent], [modulation], RaggedBatch.of([c]))[0], alone) <= TOLERANCE


@pytest.mark.parametrize(
    ("padded", "dtype", "tolerance"), [(False, torch.float32, TOLERANCE), (True, torch.bfloat16, 0.05)]
)
@pytest.mark.integration
def test_compiles_to_one_graph_and_equals_eager(padded, dtype, tolerance):
    config = tiny.SHORT
    model = tiny.ours(tiny.reference(config), config, kernels=tiny.SEPARATE).copy_with(tiny.FUSED, dtype)
    latent, time, *text = tiny.inputs(1, 8, 12)
    x = (latent.to(dtype), time, *(value.to(dtype) for value in text))
    compiled = torch.compile(model, fullgraph=True)
    assert tiny.relative(compiled(*x, padded=padded), model(*x, padded=padded)) <= tolerance


def test_bfloat16_stays_close(reference):
    """bf16-safe: rotary angles, norms and softmax do not lose what bf16 has."""
    x = tiny.inputs(1, 8, 8)
    exact = tiny.ours(reference)(*x)
    low = tiny.ours(reference, kernels=tiny.SEPARATE).copy_with(tiny.FUSED, torch.bfloat16)
    rough = low(*(value.to(torch.bfloat16) if i != 1 else value for i, value in enumerate(x)))
    assert rough.dtype is torch.bfloat16
    assert (rough.float() - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt() < 0.05
