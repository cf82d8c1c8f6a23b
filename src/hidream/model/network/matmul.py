"""Products of rows with a weight: torch's own, and oneDNN's, which are faster on a CPU and know no neighbours.

Shapes: T rows, I inputs, O outputs, F hidden width.

`torch.nn.functional.linear` leaves float32 on a CPU to MKL. On an AMD CPU with AVX-512 oneDNN's large products reached
105 GFLOP/s on a core and MKL's 85 (benchmarks/transformer.py), and each row of oneDNN's is the same to the last bit
whatever the other rows are and however many, from two on; MKL's are so from four rows per thread on. That is what lets
the engine draw the same picture alone and in a batch.

The operators are those that torch.compile itself calls (torch/_inductor/mkldnn_ir.py); `plain` is their twin.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x [..., I], weight [O, I], bias [O] or None) to x·Wᵀ + b [..., O]."""

plain: Product = F.linear


_OPS = torch.ops.mkldnn
_BFLOAT16 = torch.backends.mkldnn.is_available() and _OPS._is_mkldnn_bf16_supported()
FUSED = (torch.float32, torch.bfloat16) if _BFLOAT16 else (torch.float32,)
"""Types that oneDNN's products are used for. A CPU without AVX-512 has none for bfloat16: its operators raise there."""


LAID_FOR_ROWS = 256
"""Rows that a layout is made for; it serves for any number, and changes no bits."""


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·Wᵀ + b by oneDNN for types that are `FUSED`, else as `plain` does it; without gradients."""
    if x.dtype not in FUSED:
        return plain(x, weight, bias)
    return _apart(x, lambda rows: _OPS._linear_pointwise(rows, weight, bias, "none", [], ""))


def onednn_swiglu(x: Tensor, w1: Tensor, w3: Tensor) -> Tensor:
    """silu(x·W1ᵀ) * (x·W3ᵀ) [..., F], both done while the products are written; without gradients."""

    def hidden(rows: Tensor) -> Tensor:
        gate = _OPS._linear_pointwise(rows, w1, None, "swish", [], "")
        return _OPS._linear_pointwise.binary(rows, gate, w3, None, "mul")

    return _apart(x, hidden)


def laid_out(weight: Tensor) -> Tensor:
    """Return a copy of a weight in the layout that oneDNN reads; the products above take it in the weight's place.

    Else they make it at each call, which is felt where rows are few (docs/LOG.md). A weight that oneDNN will not
    multiply is returned as it is.
    """
    if weight.dtype not in FUSED:
        return weight.detach()
    return _OPS._reorder_linear_weight(weight.contiguous(), LAID_FOR_ROWS)


def available() -> bool:
    """Whether this build of torch has oneDNN, and nobody has switched it off (`torch.backends.mkldnn.flags`)."""
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)


def _apart(x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Never give oneDNN a single row, which it would multiply in another order than the same row among others."""
    rows = x.reshape(-1, x.shape[-1])
    y = compute(rows) if rows.shape[0] != 1 else compute(rows.expand(2, -1).contiguous())[:1]
    return y.view(*x.shape[:-1], -1)
