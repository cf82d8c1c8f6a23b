"""Several requests as one sequence of rows: each gets its own result to the last bit, with as few matrix products."""

from __future__ import annotations

from collections import Counter

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hidream.model.network.kernels import Experts, Kernels
from hidream.model.network.linear import all_rows
from hidream.model.network.ragged_batch import RaggedBatch
from hidream.model.network.transformer import Transformer

SHAPES = ((4, 4), (4, 4), (2, 8), (3, 5), (8, 6))
PRODUCTS = ("_linear_pointwise", "linear", "matmul", "mm", "addmm", "bmm")


@pytest.fixture(scope="module", params=["prepacked", "as it is"])
def model(request) -> Transformer:
    return tiny.ours(tiny.reference(), kernels=on_cpu(prepacked=request.param == "prepacked"))


def on_cpu(*, prepacked: bool) -> Kernels:
    return Kernels(onednn=True, experts=Experts.PER_EXPERT, fused=True, prepacked=prepacked)


def requests(model: Transformer, shapes=SHAPES, padded=(False,) * 5, deltas=({},) * 5, prompts=(1, 2, 1, 1, 2)):
    """Latents, conditionings and modulations of requests of all kinds: sizes, guidance, padding, LoRAs, times."""
    found = []
    for i, (rows, columns) in enumerate(shapes):
        latent, _, *text = tiny.inputs(prompts[i], 2 * rows, 2 * columns, tokens=16 if i != 3 else 9, seed=i)
        c = model.condition(*text, (rows, columns), padded=padded[i], deltas=deltas[i])
        found.append((latent, c, model.modulation(torch.full((prompts[i],), 900.0 - 100 * i), c)))
    return found


def together(model: Transformer, batch):
    latents, conditionings, modulations = zip(*batch, strict=True)
    return model.velocity(latents, modulations, RaggedBatch.of(conditionings))


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["plain", "padded", "with LoRAs"])
def test_each_request_gets_what_it_gets_alone(model, kind):
    g = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 128, generator=g), torch.randn(128, 2, generator=g)
    low_rank = {
        f"{block}.block.{layer}": [lambda x, y: x @ down.T @ up.T * 0.1]
        for block in ("double_stream_blocks.0", "single_stream_blocks.1", "single_stream_blocks.2")
        for layer in ("attn1.to_q", "attn1.to_out", "attn1.to_v_t")
    } | {"single_stream_blocks.0.block.ff_i.experts.1.w1": [lambda x, y: y.tanh()]}
    batch = requests(
        model,
        padded=(False, False, True, True, False) if kind == "padded" else (False,) * 5,
        deltas=(low_rank, {}, {}, low_rank, {}) if kind == "with LoRAs" else ({},) * 5,
    )
    alone = [together(model, [request])[0] for request in batch]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0], [3, 1], [2, 2, 2, 0]):
        for i, answer in zip(order, together(model, [batch[i] for i in order]), strict=True):
            assert torch.equal(answer, alone[i])
    if kind == "with LoRAs":
        assert not torch.equal(alone[0], together(model, requests(model))[0])


@torch.inference_mode()
def test_unpacked_and_stacked_experts_give_the_same(model):
    plain = tiny.ours(tiny.reference(), kernels=tiny.SEPARATE)
    batch = requests(plain)
    for fast, slow in zip(together(model, batch), together(plain, batch), strict=True):
        assert tiny.relative(fast, slow) <= 1e-5


@torch.inference_mode()
def test_a_layout_for_the_cpu_changes_no_bits(model):
    batch = requests(model)
    before = together(model, batch)
    other = tiny.ours(tiny.reference(), kernels=on_cpu(prepacked=not model.kernels.prepacked))
    assert bool(other.blocks[0].attn1.prepacked) is not bool(model.blocks[0].attn1.prepacked)
    after = together(other, batch)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@torch.inference_mode()
def test_products_depend_on_the_tokens_not_on_the_requests(model):
    one = requests(model, shapes=((8, 8),), prompts=(1,))
    four = requests(model, shapes=((4, 4),) * 4, prompts=(1,) * 4)
    counts = []
    for batch in (one, four, one + four):
        with Counting() as counting:
            together(model, batch)
        counts.append(counting.products)
    assert counts[0] == counts[1] == counts[2] > 0


@torch.inference_mode()
def test_an_indexed_layout_is_the_same_in_other_words(model):
    for padded in ((False,) * 5, (False, False, True, True, False)):
        batch = requests(model, padded=padded)
        latents, conditionings, modulations = zip(*batch, strict=True)
        indexed = model.velocity(latents, modulations, RaggedBatch.of(conditionings, indexed=True))
        for fast, plain in zip(indexed, together(model, batch), strict=True):
            assert tiny.relative(fast, plain) <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("eager", marks=pytest.mark.slow),
        pytest.param("inductor", marks=[pytest.mark.long, pytest.mark.integration]),
    ],
)
def test_compiled_blocks_are_one_graph_for_any_mix_of_requests(backend):
    reference = tiny.reference(tiny.SHORT)
    compiled = tiny.ours(reference, tiny.SHORT, Kernels(fused=True, compiled=True))
    compiled.compile_blocks(backend)
    batch = requests(compiled)
    latents, conditionings, modulations = zip(*batch, strict=True)

    def velocities(which):
        pick = [[series[i] for i in which] for series in (latents, modulations, conditionings)]
        return compiled.velocity(pick[0], pick[1], compiled.batch(pick[2]))

    plain = together(tiny.ours(reference, tiny.SHORT), batch)
    velocities([0])  # one segment is a graph of its own,
    velocities([0, 2])  # several are the other
    for which in ([0, 1, 2, 3, 4], [4], [1, 3], [2, 2, 2, 0]):
        with torch.compiler.set_stance("fail_on_recompile"):
            answers = velocities(which)
        for i, answer in zip(which, answers, strict=True):
            assert tiny.relative(answer, plain[i]) <= 1e-5


@torch.inference_mode()
def test_a_batch_of_equal_shapes_attends_at_once(model):
    equal = requests(model, shapes=((4, 4),) * 3, prompts=(1, 2, 1))
    with Counting() as counting:
        together(model, equal)
    assert counting.calls["scaled_dot_product_attention"] == len(model.blocks)


def test_changes_are_spread_over_their_own_requests_rows(model):
    ink, none = {"final_layer.linear": [lambda x, y: y]}, {}
    alone, without, *_ = (RaggedBatch.of([c]) for _, c, _ in requests(model, deltas=(ink, none, none, none, none)))
    assert alone.img.adapters == all_rows(ink) == ((slice(None), ink),)
    assert without.img.adapters == all_rows(none) == ()
    batch = requests(model, shapes=((4, 4), (3, 5)), prompts=(1, 2), deltas=(none, ink))
    mixed = RaggedBatch.of([c for _, c, _ in batch])
    assert mixed.img.adapters == ((slice(16, 16 + 2 * 15), ink),)
    assert mixed.both.adapters == ((slice(48, 48 + 2 * 47), ink),)  # each with two texts of 16


class Counting(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def products(self) -> int:
        return sum(self.calls[name] for name in PRODUCTS)
