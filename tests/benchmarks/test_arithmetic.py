"""The count of a step's arithmetic equals what torch counts when it computes the step."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from arithmetic import peak_flops, peak_products, peak_rates, step_flops
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hidream.model.network.config import TransformerConfig
from hidream.model.network.kernels import Experts, Kernels
from hidream.model.network.ragged_batch import RaggedBatch
from hidream.model.network.transformer import Transformer
from model.tiny import CONFIG as TINY


@torch.inference_mode()
def counted_by_torch(config: TransformerConfig, grid: tuple[int, int], text_tokens: int) -> int:
    torch.manual_seed(0)
    kernels = Kernels(experts=Experts.PER_EXPERT)  # torch's counter knows none of oneDNN's operators
    model = Transformer(config, kernels).eval()
    t5, llama = config.caption_channels
    layers = max(config.llama_layers) + 1
    text = (torch.randn(1, text_tokens, t5), torch.randn(layers, 1, text_tokens, llama), torch.randn(1, 24))
    c = model.condition(*text, grid)
    latent = torch.randn(1, config.in_channels, grid[0] * 2, grid[1] * 2)
    modulation, packed = model.modulation(torch.tensor([500.0]), c), RaggedBatch.of([c])
    # attention on a CPU is counted only as the two products that it is by definition
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.velocity([latent], [modulation], packed)
    return counter.get_total_flops()


@pytest.mark.parametrize("grid", [(4, 4), (3, 7)])
@pytest.mark.parametrize("text_tokens", [5, 16])
def test_a_step_is_counted_as_torch_counts_it(grid, text_tokens):
    assert step_flops(TINY, grid[0] * grid[1], text_tokens) == counted_by_torch(TINY, grid, text_tokens)


def test_more_experts_cost_only_their_gate():
    more = dataclasses.replace(TINY, num_routed_experts=8)
    assert step_flops(more, 12, 5) == counted_by_torch(more, (3, 4), 5)
    assert step_flops(more, 12, 5) - step_flops(TINY, 12, 5) < step_flops(TINY, 12, 5) / 100


@pytest.mark.parametrize(("image_tokens", "reference"), [(1024, 21.7e12), (4096, 77.8e12), (9216, 191.8e12)])
def test_the_published_model_needs_less_than_the_reference_computes(image_tokens, reference):
    """Its figures hold the text rows that it computes and throws away: 8 % at 512², 1 % at 1536²."""
    share = step_flops(TransformerConfig(), image_tokens, 128) / reference
    assert 0.9 < share < 1


def test_a_peak_is_the_fastest_library_of_each_round():
    cpu = torch.device("cpu")
    names = list(peak_products(cpu, torch.float32))
    assert names[0] == "peak, torch"
    seconds = {"peak, torch": [0.2, 0.1], "peak, oneDNN": [0.1, 0.4]}
    assert peak_rates(seconds, cpu) == [peak_flops(cpu) / 0.1, peak_flops(cpu) / 0.1]
