"""The embeddings of prompts that were encoded before: the most recently used ones, up to a number of bytes.

An entry is one encoder's embedding of one prompt, so a request that changes only Llama's prompt finds the others. For
the published model Llama's takes 33.5 MB (32 layers × 128 tokens × 4096, bfloat16), T5's 1 MB, and each CLIP's 4 KB.
This module does not know the encoders: the key contains all that determines the values. One thread at a time uses it.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from cachetools import LRUCache
from torch import Tensor


class TextCache(LRUCache[Hashable, Tensor]):
    """The least recently used entries are dropped as soon as all together take more than `limit_bytes`.

    Entries are stored on `device` (such as the CPU, to save device memory); None leaves them where they are. They must
    not be written to.
    """

    def __init__(self, limit_bytes: int, device: torch.device | None = None) -> None:
        super().__init__(limit_bytes, getsizeof=lambda value: value.nbytes)
        self._device = device

    def __setitem__(self, key: Hashable, value: Tensor) -> None:
        """Store a value, unless it alone is larger than the limit."""
        self.pop(key, None)
        if value.nbytes <= self.maxsize:
            super().__setitem__(key, self._own(value))

    def _own(self, value: Tensor) -> Tensor:
        kept = value.detach() if self._device is None else value.detach().to(self._device)
        # a view would keep all of the tensor that it looks at, uncounted
        return kept.clone() if kept.untyped_storage().nbytes() > kept.nbytes else kept
