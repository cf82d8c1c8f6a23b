"""A transformer's copy in bfloat16, for CPUs that multiply it faster than float32.

CPUs differ: with AVX-512 BF16 or AMX a matrix product takes less than half the time, without either about a hundred
times as long, and without AVX-512 oneDNN has none. So it is measured, never assumed. The copy exists beside the
transformer and serves the modes that may lose a little (`types.Mode`). Weights that a file has in bfloat16 are the same
tensors, others are converted.
"""

from __future__ import annotations

import math
import time

import torch

from hidream.model.network import matmul
from hidream.model.network.kernels import Experts, Kernels
from hidream.model.network.transformer import Transformer

FASTER = 1.3
"""How many times faster matrix products must be for a copy to be made; everything else gains less."""
ROWS, WIDTH, REPEATS = 256, 1024, 5
"""A matrix product that takes long enough (some milliseconds) to be measured beside the machine's other work."""
COPY_KERNELS = Kernels(onednn=True, experts=Experts.PER_EXPERT, prepacked=True)


@torch.inference_mode()
def is_faster() -> bool:
    """Measure whether this CPU multiplies bfloat16 faster than float32."""
    if not matmul.onednn_available() or torch.bfloat16 not in matmul.ONEDNN_DTYPES:
        return False
    x, weight = torch.ones(ROWS, WIDTH), torch.ones(WIDTH, WIDTH)
    slow = _seconds(x, weight, math.inf)
    return _seconds(x.bfloat16(), weight.bfloat16(), slow) * FASTER < slow


def copy_of(transformer: Transformer) -> Transformer:
    """Copy a transformer on a CPU whose weights are stored in a float type."""
    return transformer.copy_with(COPY_KERNELS, torch.bfloat16)


def _seconds(x: torch.Tensor, weight: torch.Tensor, enough: float) -> float:
    """Fewest seconds of CPU time, which other work disturbs least, that one of some matrix products took.

    The first warms up, and is enough if it is far too slow.
    """
    best = math.inf
    for i in range(1 + REPEATS):
        started = time.process_time()
        matmul.onednn(x, weight, None)
        taken = time.process_time() - started
        if i or taken > 10 * enough:
            best = min(best, taken)
        if taken > 10 * enough:
            break
    return best
