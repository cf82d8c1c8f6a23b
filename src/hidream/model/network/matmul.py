"""Matrix multiplication kernels: torch's own, and oneDNN's, which are faster on a CPU and keep a row's bits in a batch.

Shapes: T rows, I inputs, O outputs, F hidden width.

`torch.nn.functional.linear` leaves float32 on a CPU to MKL. On an AMD CPU with AVX-512, oneDNN reached 105 GFLOP/s on a
core with large matrices and MKL 85 (benchmarks/transformer.py). Each row of oneDNN's float32 result has the same bits
whatever the other rows are and however many, from two rows on; MKL's has from four rows per thread on. That is why the
engine generates the same image alone and in a batch. In bfloat16, oneDNN's do not on every CPU
(`Kernels.keep_bits_in_batch`).

The operators are those that torch.compile itself calls (torch/_inductor/mkldnn_ir.py); `linear` is their reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Matmul = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x [..., I], weight [O, I], bias [O] or None) to x·Wᵀ + b [..., O]."""

linear: Matmul = F.linear


_OPS = torch.ops.mkldnn
_BFLOAT16 = torch.backends.mkldnn.is_available() and _OPS._is_mkldnn_bf16_supported()
ONEDNN_DTYPES = (torch.float32, torch.bfloat16) if _BFLOAT16 else (torch.float32,)
"""Types that oneDNN's kernels are used for. On a CPU without AVX-512, its operators raise for bfloat16."""


PREPACKED_FOR_ROWS = 256
"""Rows that a prepacked layout is made for; it serves any number of rows, and changes no bits."""


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·Wᵀ + b by oneDNN for `ONEDNN_DTYPES`, for other types by `linear`; without gradients."""
    if x.dtype not in ONEDNN_DTYPES:
        return linear(x, weight, bias)
    return _never_one_row(x, lambda rows: _OPS._linear_pointwise(rows, weight, bias, "none", [], ""))


def onednn_swiglu(x: Tensor, w1: Tensor, w3: Tensor) -> Tensor:
    """silu(x·W1ᵀ) * (x·W3ᵀ) [..., F], both fused into the matrix products; without gradients."""

    def hidden(rows: Tensor) -> Tensor:
        gate = _OPS._linear_pointwise(rows, w1, None, "swish", [], "")
        return _OPS._linear_pointwise.binary(rows, gate, w3, None, "mul")

    return _never_one_row(x, hidden)


def prepacked_copy(weight: Tensor) -> Tensor:
    """Return a copy of a weight in oneDNN's own layout, which oneDNN's kernels take in the weight's place.

    Otherwise they make it at each call, which costs time where rows are few (docs/LOG.md). A weight of a type that
    oneDNN does not multiply is returned as it is.
    """
    if weight.dtype not in ONEDNN_DTYPES:
        return weight.detach()
    return _OPS._reorder_linear_weight(weight.contiguous(), PREPACKED_FOR_ROWS)


def onednn_available() -> bool:
    """Whether this build of torch has oneDNN, and it is not switched off (`torch.backends.mkldnn.flags`)."""
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)


def _never_one_row(x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Never give oneDNN a single row: it would sum in another order than for the same row among others."""
    rows = x.reshape(-1, x.shape[-1])
    y = compute(rows) if rows.shape[0] != 1 else compute(rows.expand(2, -1).contiguous())[:1]
    return y.view(*x.shape[:-1], -1)
