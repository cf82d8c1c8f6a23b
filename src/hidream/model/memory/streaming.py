"""Layer streaming: modules whose weights live in host memory and are copied to the device one after the other.

Iterating over a `LayerStream` yields every module in order, with its weights on the device while it is yielded. A
thread copies the next module's weights meanwhile, on a CUDA stream of its own. So the weights of two modules are on the
device at a time, and those of the `resident` modules from their first use until `release`. Nothing is copied back: the
host copies (in memory, or in a mapped file) never change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import nn

from hidream.model.memory.offload import copy_to, own_tensors

M = TypeVar("M", bound=nn.Module)


class DeviceCopy(NamedTuple):
    """One module's weights on the device."""

    values: list[tuple[nn.Module, str, Any]]  # module, attribute, what it holds
    arrived: torch.cuda.Event | None


class LayerStream(Generic[M]):
    """Modules to stream; `parts` selects the submodules of each whose weights are copied."""

    def __init__(
        self,
        modules: Iterable[M],
        device: torch.device,
        parts: Callable[[M], Iterable[nn.Module]] = lambda module: (module,),
        resident: Iterable[int] = (),
    ) -> None:
        self._modules, self._device = list(modules), device
        self._host_copies = [
            [(m, name, value) for part in parts(module) for m in part.modules() for name, value in own_tensors(m)]
            for module in self._modules
        ]
        self._resident, self._on_device = frozenset(resident), set[int]()
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __iter__(self) -> Iterator[M]:
        """Yield each module while its weights are on the device."""
        coming = [i for i in range(len(self._modules)) if i not in self._on_device]
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights") as thread:
            copies = deque([thread.submit(self._copy, i) for i in coming[:1]])
            for i, module in enumerate(self._modules):
                if i in self._on_device:
                    yield module
                    continue
                copy = self._receive(copies.popleft())
                coming.pop(0)
                copies.extend(thread.submit(self._copy, following) for following in coming[:1])
                try:
                    _set(copy.values)
                    yield module
                finally:
                    if i in self._resident:
                        self._on_device.add(i)
                    else:
                        _set(self._host_copies[i])
                    del copy

    def release(self) -> None:
        """Put the host copies of the resident modules back."""
        for i in self._on_device:
            _set(self._host_copies[i])
        self._on_device.clear()

    def _copy(self, i: int) -> DeviceCopy:
        """Copy one module's weights to the device, on the thread."""
        if self._copy_stream is None:
            return DeviceCopy(
                [(m, name, copy_to(value, self._device)) for m, name, value in self._host_copies[i]], None
            )
        with torch.cuda.stream(self._copy_stream):
            values = [(m, name, copy_to(value, self._device)) for m, name, value in self._host_copies[i]]
            arrived = torch.cuda.Event()
            arrived.record(self._copy_stream)
        return DeviceCopy(values, arrived)

    def _receive(self, coming: Future[DeviceCopy]) -> DeviceCopy:
        """Wait for a module: this thread until the copies are queued, the device until they are done."""
        copy = coming.result()
        if copy.arrived is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(copy.arrived)
            for _, _, value in copy.values:
                for tensor in value.parts.values() if hasattr(value, "parts") else (value,):
                    tensor.record_stream(computing)  # its memory is not reused for a later copy while it is read
        return copy


def _set(values: list[tuple[nn.Module, str, Any]]) -> None:
    for module, name, value in values:
        setattr(module, name, value)
