"""A transformer's twin that computes in bfloat16, for CPUs that multiply it faster than float32.

CPUs differ: with AVX-512 BF16 or AMX a product takes less than half the time, without either about a hundred times as
long, and without AVX-512 oneDNN has none. So it is measured, never assumed. The twin stands beside the transformer and
draws the modes that may lose a little (`types.Mode`); weights that a file has in bfloat16 are the same tensors, others
are converted.
"""

from __future__ import annotations

import math
import time

import torch

from hidream.model.network import matmul
from hidream.model.network.transformer import Transformer

FASTER = 1.3
"""How many times faster products have to be for a twin to be made; what is not a product gains less."""
ROWS, WIDTH, REPEATS = 256, 1024, 5
"""A product that takes long enough (some milliseconds) to be measured beside whatever else the machine does."""


@torch.inference_mode()
def gains() -> bool:
    """Measure whether this CPU multiplies bfloat16 faster than float32."""
    if not matmul.available() or torch.bfloat16 not in matmul.FUSED:
        return False
    x, weight = torch.ones(ROWS, WIDTH), torch.ones(WIDTH, WIDTH)
    slow = _seconds(x, weight, math.inf)
    return _seconds(x.bfloat16(), weight.bfloat16(), slow) * FASTER < slow


def twin(transformer: Transformer) -> Transformer:
    """Make the twin of a transformer on a CPU whose weights are stored in a float type."""
    with torch.device("meta"):
        made = Transformer(transformer.config)
    made.load_state_dict({name: p.bfloat16() for name, p in transformer.state_dict().items()}, assign=True)
    made.compute_on_cpu(onednn=True)
    made.lay()
    return made.eval().requires_grad_(False)


def _seconds(x: torch.Tensor, weight: torch.Tensor, enough: float) -> float:
    """Fewest seconds of processors, which others on the machine disturb least, that one of some products took.

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
