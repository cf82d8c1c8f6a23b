"""The embeddings of prompts that were encoded before: the most recent ones, bounded in bytes.

An entry is what one encoder says of one prompt, so that a request which changes only Llama's prompt finds the others.
For the published model Llama's takes 33.5 MB (32 layers × 128 tokens × 4096, bfloat16), T5's 1 MB, the CLIPs' 4 KB.
Knows no encoders: the key says all that decides the values. For one thread, the model's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache has done so far, and what it holds."""

    hits: int
    misses: int
    entries: int
    size_bytes: int
    limit_bytes: int


class TextCache:
    """A map that forgets what was not asked for longest, as soon as it takes more than `limit_bytes`.

    `device` is where the entries lie (such as the CPU, to spare the card's memory); None leaves them where they are.
    """

    def __init__(self, limit_bytes: int, device: torch.device | None = None) -> None:
        assert limit_bytes >= 0, f"limit_bytes is {limit_bytes}; accepted: 0 (keep nothing) or more"
        self._limit_bytes = limit_bytes
        self._device = device
        self._entries: OrderedDict[Hashable, Tensor] = OrderedDict()  # the longest unused first
        self._size_bytes = self._hits = self._misses = 0

    def get(self, key: Hashable) -> Tensor | None:
        """What `put` was given for `key`, if it is still here; not to be written to."""
        value = self._entries.get(key)
        if value is None:
            self._misses += 1
            return None
        self._hits += 1
        self._entries.move_to_end(key)
        return value

    def put(self, key: Hashable, value: Tensor) -> None:
        """Keep `value`, unless it alone is larger than the limit."""
        self._forget(key)
        if value.nbytes > self._limit_bytes:
            return
        while self._size_bytes + value.nbytes > self._limit_bytes:
            self._forget(next(iter(self._entries)))
        self._entries[key] = self._own(value)
        self._size_bytes += value.nbytes

    @property
    def stats(self) -> CacheStats:
        """Hits and misses of `get`, entries and bytes at this moment."""
        return CacheStats(self._hits, self._misses, len(self._entries), self._size_bytes, self._limit_bytes)

    def _own(self, value: Tensor) -> Tensor:
        kept = value.detach() if self._device is None else value.detach().to(self._device)
        # a view would keep the whole of what it looks at, uncounted
        return kept.clone() if kept.untyped_storage().nbytes() > kept.nbytes else kept

    def _forget(self, key: Hashable) -> None:
        value = self._entries.pop(key, None)
        if value is not None:
            self._size_bytes -= value.nbytes
