"""Modules whose weights live in host memory and visit the device one after the other, the next one on its way already.

Iterating over a `Stream` yields every module in order, with its weights on the device while it is yielded; a thread
brings the next one's meanwhile, on a CUDA stream of its own. So two modules' weights are on the device at once, and
those of the `staying` ones from the first time until `leave`. Nothing is copied back: what is at home (in memory, or in
a mapped file) never changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import nn

from hidream.model.memory.offload import held, moved

M = TypeVar("M", bound=nn.Module)


class Visit(NamedTuple):
    """One module's weights on the device."""

    values: list[tuple[nn.Module, str, Any]]  # module, attribute, what it holds
    arrived: torch.cuda.Event | None


class Stream(Generic[M]):
    """The modules; `parts` says which of each one's own modules travel, the others stay where they are."""

    def __init__(
        self,
        modules: Iterable[M],
        device: torch.device,
        parts: Callable[[M], Iterable[nn.Module]] = lambda module: (module,),
        staying: Iterable[int] = (),
    ) -> None:
        self._modules, self._device = list(modules), device
        self._home = [
            [(m, name, value) for part in parts(module) for m in part.modules() for name, value in held(m)]
            for module in self._modules
        ]
        self._staying, self._there = frozenset(staying), set[int]()
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __iter__(self) -> Iterator[M]:
        """Yield each module while its weights are on the device."""
        coming = [i for i in range(len(self._modules)) if i not in self._there]
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights") as thread:
            visits = deque([thread.submit(self._bring, i) for i in coming[:1]])
            for i, module in enumerate(self._modules):
                if i in self._there:
                    yield module
                    continue
                visit = self._receive(visits.popleft())
                coming.pop(0)
                visits.extend(thread.submit(self._bring, following) for following in coming[:1])
                try:
                    _set(visit.values)
                    yield module
                finally:
                    if i in self._staying:
                        self._there.add(i)
                    else:
                        _set(self._home[i])
                    del visit

    def leave(self) -> None:
        """Let those that stay go home as well."""
        for i in self._there:
            _set(self._home[i])
        self._there.clear()

    def _bring(self, i: int) -> Visit:
        """Copy one module's weights to the device; runs on the thread."""
        if self._copies is None:
            return Visit([(m, name, moved(value, self._device)) for m, name, value in self._home[i]], None)
        with torch.cuda.stream(self._copies):
            values = [(m, name, moved(value, self._device)) for m, name, value in self._home[i]]
            arrived = torch.cuda.Event()
            arrived.record(self._copies)
        return Visit(values, arrived)

    def _receive(self, coming: Future[Visit]) -> Visit:
        """Wait for a module: this thread until the copies are under way, the device until they have arrived."""
        visit = coming.result()
        if visit.arrived is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(visit.arrived)
            for _, _, value in visit.values:
                for tensor in value.parts.values() if hasattr(value, "parts") else (value,):
                    tensor.record_stream(computing)  # the memory is not given to a later copy while it is still read
        return visit


def _set(values: list[tuple[nn.Module, str, Any]]) -> None:
    for module, name, value in values:
        setattr(module, name, value)
