"""How much a step of the transformer has to compute, and how much this machine can: what makes a share of the peak.

Counted are the multiplications and additions of matrix products and of attention, two for each pair, that the answer
needs: a token's own experts only, no query of tokens that are thrown away, no text behind the last block. What is small
beside them (norms, rotations, the softmax) is not counted, nor what a request computes once (`Transformer.condition`,
`Transformer.modulations`). Who computes more than this does not get a larger share.

The peak is that of a large square product by the fastest of the machine's matrix libraries, measured in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from hidream.model.network.config import TransformerConfig
from hidream.model.network.moe import MULTIPLE_OF

PEAK_SIDE = {"cpu": 2048, "cuda": 8192}
"""Sides of the square matrices: from here on larger ones are not faster (measured on two AMD cores; a GPU by size)."""


def step_flops(config: TransformerConfig, image_tokens: int, text_tokens: int) -> int:
    """Operations of one step for one prompt, with `text_tokens` of each encoder; a pad token is an image token."""
    double, single = config.num_layers, config.num_single_layers
    patch = config.patch_size**2 * config.in_channels
    ends = 2 * image_tokens * patch * config.dim
    blocks = double * double_macs(config, image_tokens, text_tokens)
    blocks += max(single - 1, 0) * single_macs(config, image_tokens + 2 * text_tokens, image_tokens, text_tokens)
    blocks += min(single, 1) * single_macs(config, image_tokens, image_tokens, text_tokens)
    return 2 * (ends + blocks)


def double_macs(config: TransformerConfig, image_tokens: int, text_tokens: int) -> int:
    """Multiply-adds of a block in which text has its own weights; its text is always needed, by the single blocks."""
    running, fresh = 2 * text_tokens, text_tokens
    rows = image_tokens + running
    linear = config.dim**2 * (4 * rows + 2 * fresh)  # q, k, v, out; of the fresh tokens k and v
    feed_forward = image_tokens * mixture_macs(config) + running * swiglu_macs(config, 4 * config.dim)
    return linear + attention_macs(config, rows, rows + fresh) + feed_forward


def single_macs(config: TransformerConfig, asking: int, image_tokens: int, text_tokens: int) -> int:
    """Multiply-adds of a block with one set of weights, of which only `asking` tokens are wanted."""
    keys = image_tokens + 3 * text_tokens
    linear = config.dim**2 * (2 * asking + 2 * keys)  # q and out, k and v
    return linear + attention_macs(config, asking, keys) + asking * mixture_macs(config)


def attention_macs(config: TransformerConfig, queries: int, keys: int) -> int:
    """Multiply-adds of the logits and of the weighted sum."""
    return 2 * queries * keys * config.dim


def mixture_macs(config: TransformerConfig) -> int:
    """Multiply-adds of one token's experts: those that are active, the shared one, and the gate that chooses."""
    active = config.num_activated_experts * swiglu_macs(config, 4 * config.dim)
    return active + swiglu_macs(config, 2 * config.dim) + config.dim * config.num_routed_experts


def swiglu_macs(config: TransformerConfig, hidden: int) -> int:
    """Multiply-adds of one token in a SwiGLU of nominal width `hidden`, of which it has two thirds, rounded up."""
    return 3 * config.dim * (-(-int(2 * hidden / 3) // MULTIPLE_OF) * MULTIPLE_OF)


def peak_products(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Large square products by each library there is, as sides of `measure.interleaved`; `peak_flops` each."""
    side = PEAK_SIDE[device.type]
    x, weight = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    products: dict[str, Callable[[], object]] = {"peak, torch": lambda: F.linear(x, weight)}
    if device.type == "cpu" and dtype is torch.float32 and torch.backends.mkldnn.is_available():
        # torch leaves float32 to MKL; this is what torch.compile calls instead
        products["peak, oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return products


def peak_flops(device: torch.device) -> int:
    """Operations of one product of `peak_products`."""
    return int(2 * PEAK_SIDE[device.type] ** 3)


def peak_rates(seconds: Mapping[str, Sequence[float]], device: torch.device) -> list[float]:
    """Operations a second in each round, by whichever library was fastest in it."""
    return [peak_flops(device) / min(taken) for taken in zip(*seconds.values(), strict=True)]
