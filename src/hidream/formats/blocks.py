"""From blocks of quantised values to a matrix, a few blocks at a time.

A scheme decodes blocks to float32. For a whole matrix at once, that would be slow on a CPU, because no intermediate
result would fit into the caches, and would double the memory if 16 bits are requested. So it decodes in chunks.

Shapes: n blocks of V values each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CPU_CHUNK = 2**19
"""Values decoded at a time by each thread: 2 MiB as float32; the quickest from 2^15 to 2^25 on an EPYC."""
DEVICE_CHUNK = 2**24
"""Values decoded at a time elsewhere: enough to fill any card, and never more than 64 MiB of float32."""


def by_chunks(
    decode: Callable[..., Tensor], parts: Sequence[Tensor], shape: torch.Size, values: int, dtype: torch.dtype
) -> Tensor:
    """Decode parts [n, ...] to a tensor of `shape`, in `dtype`.

    `decode` takes some blocks' rows of each part and returns their `values` values each, float32. What the last block
    has beyond `shape` is left out.
    """
    blocks, length = parts[0].shape[0], shape.numel()
    step = blocks if torch.compiler.is_compiling() else max(1, _chunk(parts[0].device) // values)
    if blocks <= step:
        return decode(*parts).flatten()[:length].to(dtype).view(shape)
    out = torch.empty(blocks, values, dtype=dtype, device=parts[0].device)
    for rows in zip(out.split(step), *(part.split(step) for part in parts), strict=True):
        rows[0].copy_(decode(*rows[1:]).view(-1, values))
    return out.flatten()[:length].view(shape)


def _chunk(device: torch.device) -> int:
    return CPU_CHUNK * torch.get_num_threads() if device.type == "cpu" else DEVICE_CHUNK
