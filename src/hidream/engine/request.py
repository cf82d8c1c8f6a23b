"""The input of the scheduler: a request as numbers, and the limits of what the machine computes at once.

Knows no prompts, images or tensors. The loop makes a `Work` of each request. User input was checked before that, so a
wrong number here is a bug.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Policy(StrEnum):
    """The order of requests; `scheduler.py` has the formulas.

    FIFO: the request that arrived first.
    SRPT: the request with the least remaining work (shortest remaining processing time), within the overtaking bounds.
    """

    FIFO = "fifo"
    SRPT = "srpt"


@dataclass(frozen=True, slots=True)
class Work:
    """One request, as the scheduler sees it.

    `steps` has, for each denoising step that evaluates the model, the tokens that the request puts into the batch:
    image tokens of the pass's grid, twice for a guided request, whose two segments go together. Two passes on different
    grids are one tuple with different numbers. `memory_bytes` is held from admission to the end, also while the request
    is paused: latents, conditioning, sampler history. What a step needs only while it runs grows with its tokens, so it
    belongs to `Limits.tokens`. A larger `priority` goes earlier; it may be negative.
    """

    id: str
    steps: tuple[int, ...]
    memory_bytes: int
    priority: int = 0

    def __post_init__(self) -> None:
        assert self.steps, f"{self.id!r} has no steps; a request evaluates the model at least once"
        assert min(self.steps) >= 1, f"{self.id!r} has steps of {self.steps} tokens; each needs at least one"
        assert self.memory_bytes >= 0, f"{self.id!r} holds {self.memory_bytes} bytes"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the machine: tokens in one step, bytes held by admitted requests, and how many those may be.

    `tokens` should be the fewest that keep the hardware busy, not the most that fit: all in a step wait for its end, so
    that a larger budget makes small requests as slow as the large ones beside them. `requests` of None means as many
    as the memory allows. The last eighth of the memory, and the last of several places, are the reserve of whoever is
    first of all (`scheduler.py`): so that large requests that are paused do not keep a small one out.
    """

    tokens: int
    memory_bytes: int
    requests: int | None = None

    def __post_init__(self) -> None:
        assert self.tokens >= 1, f"a step of {self.tokens} tokens computes nothing"
        assert self.memory_bytes >= 0, f"{self.memory_bytes} bytes are not a limit"
        assert self.requests is None or self.requests >= 1, f"{self.requests} requests: nothing could be admitted"

    @property
    def reserve_bytes(self) -> int:
        """Memory that is only for who is first of all."""
        return self.memory_bytes // 8

    @property
    def reserve_requests(self) -> int:
        """Places that are."""
        return int(self.requests is not None and self.requests > 1)
