"""The capacity of the machine, measured: how many tokens keep it busy, and how much memory requests may hold.

A step with few tokens does not use a large device fully. With more tokens than keep it busy, all requests wait longer
without a gain. So the budget of a step is the smallest number of tokens beyond which a token hardly becomes cheaper.
The measurement also shows whether a request's bits depend on the other requests of its step.
"""

from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hidream.engine.runner import segment_tokens
from hidream.model.memory.footprint import step_bytes
from hidream.model.model import Model
from hidream.model.pipeline import now

GAIN = 1.2
"""A budget is doubled only if twice the tokens are computed this many times faster, per token."""
MEASURE_S = 3.0
"""Seconds after which the measurement ends with what it has found; a step of a large model on a CPU takes minutes."""
REPEATS = 3
"""Measurements of each size, after one to warm up; the fastest counts, which others on the machine disturb least."""
SEGMENTS_MAX = 64
SHARE = 0.5
"""Of the memory that is free when the model has been loaded, for requests; the rest is for steps and decoding."""


class Capacity(NamedTuple):
    """What was measured: tokens of a step, and whether requests in one step kept the bits that they have alone."""

    tokens: int
    same_bits: bool


@torch.inference_mode()
def measure(model: Model) -> Capacity:
    """Find the tokens of a step that keep the device busy, by steps of 1, 2, 4, … small images, of random noise."""
    side = max(1, round(math.sqrt(model.best_tokens) / 2))
    config, text = model.transformer.config, model.text.embed([""]).embeds
    conditioning = model.transformer.condition(*text, (side, side))
    noise = torch.randn(1, config.in_channels, *(side * config.patch_size,) * 2, generator=torch.Generator())
    latent = noise.to(model.device, model.dtype)
    (modulation,) = model.transformer.modulations([500.0], conditioning)
    tokens = segment_tokens(side * side, model.text.tokens)

    def clock() -> float:
        """On a CPU the time that was computed, which others on the machine disturb less than the time that passed."""
        return time.process_time() / torch.get_num_threads() if model.device.type == "cpu" else now(model.device)

    begun = clock()

    def step(segments: int) -> tuple[float, list[Tensor]]:
        """Seconds per token, and the velocities."""
        batch, best, velocities = model.transformer.batch([conditioning] * segments), math.inf, []
        for _ in range(1 + REPEATS):
            started = clock()
            velocities = model.transformer.velocity([latent] * segments, [modulation] * segments, batch)
            best = min(best, clock() - started)
            if clock() - begun > MEASURE_S:
                break
        return best / (segments * tokens), velocities

    segments, same_bits = 1, False
    with model.phases.denoising():
        cost, (alone,) = step(1)
        while segments < SEGMENTS_MAX and clock() - begun < MEASURE_S:
            doubled, together = step(2 * segments)
            same_bits = (same_bits or segments == 1) and all(torch.equal(each, alone) for each in together)
            if doubled * GAIN > cost:
                break
            segments, cost = 2 * segments, doubled
    return Capacity(segments * tokens, same_bits)


def usable_bytes(model: Model) -> int:
    """Bytes that a request could have that is alone: what is free, and what the allocator keeps for the next one."""
    if model.device.type != "cuda":
        return _free_bytes(model)
    kept = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return _free_bytes(model) + kept


def memory_for_requests(model: Model, tokens: int) -> int:
    """Bytes that admitted requests may hold, beside the weights and a step of `tokens`; at least one step's worth."""
    free = _free_bytes(model)
    step = step_bytes(model.transformer.config, tokens, 1, model.dtype.itemsize, fused=True)
    return max(int(SHARE * free) - step, step)


def _free_bytes(model: Model) -> int:
    return torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else _free_host_bytes()


def _free_host_bytes() -> int:
    """The memory that Linux would give to a new process, including the page cache; elsewhere half of the memory."""
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    if found:
        return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
