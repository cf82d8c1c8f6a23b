"""The peak of the bytes that real code keeps alive: it runs on fake tensors, whose storages are counted."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make within; what existed before counts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in self._tensors((args, kwargs)):
            self.seen.setdefault(tensor.untyped_storage(), 0)
        out = func(*args, **(kwargs or {}))
        for tensor in self._tensors(out):
            storage = tensor.untyped_storage()
            if storage not in self.seen:
                self.seen[storage] = storage.nbytes()
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return out

    def _add(self, nbytes: int) -> None:
        self.now += nbytes
        self.peak = max(self.peak, self.now)

    @staticmethod
    def _tensors(tree: Any) -> list[Tensor]:
        return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]


def peak_of(
    build: Callable[[], nn.Module], prepare: Callable[[nn.Module], Callable[[], object]], dtype: torch.dtype
) -> int:
    """Bytes alive at most, beside weights and inputs, in the call that `prepare` makes ready for the built module."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # fake parameters cannot be cast in place
        try:
            module = build().eval()
        finally:
            torch.set_default_dtype(before)
        call = prepare(module)
        with LiveBytes() as live:
            call()
    return live.peak
