"""One call's own engine, whose steps alternate with those of other calls.

An image then depends on nothing but its own call, on any device. All calls of a pipeline share a `Turns`, which lets
one step at a time use the model, on whatever thread. So calls on several threads alternate, and a call that waits for
its caller, such as a stream in a loop, holds nothing up. Between two calls' steps, offloaded weights leave the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from types import TracebackType
from typing import Self

from hidream.engine.capacity import Capacity
from hidream.engine.loop import Engine, Options, Outcome, WantsPreview
from hidream.engine.request import Policy
from hidream.model.model import Model
from hidream.model.pipeline import OnStep
from hidream.request import ImageRequest

READ_AHEAD = 4
"""Requests that wait in an engine: as many as it encodes ahead, where that overlaps (`Options.expected`)."""


class Turns:
    """Lets one call at a time use a model, in the order in which they come.

    A lock alone would not do: who releases it and wants it again gets it before the others have woken up. So whoever
    waits for it holds a second one, which all others wait for.

    Closing an engine never waits: Python may end an abandoned call in the midst of another one's step.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.measured: Capacity | None = None
        self._using, self._next = Lock(), Lock()
        self._latest: Engine | None = None
        self._abandoned: deque[Engine] = deque()

    @property
    def open(self) -> bool:
        """Whether the engine of the latest step is not closed."""
        return self._latest is not None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and have the model until the end of the block."""
        with self._next:
            self._using.acquire()
        try:
            self._close_abandoned()
            yield
        finally:
            self._using.release()
        self._sweep()

    def step(self, engine: Engine) -> list[Outcome]:
        """Let an engine take a step."""
        with self.turn():
            if self._latest is not None and self._latest is not engine:
                self._latest.release_device()
            self._latest = engine
            return engine.step()

    def close(self, engine: Engine) -> None:
        """Close an engine, at once or after the step that another call is taking."""
        self._abandoned.append(engine)
        self._sweep()

    def _sweep(self) -> None:
        if self._abandoned and self._using.acquire(blocking=False):
            try:
                self._close_abandoned()
            finally:
                self._using.release()

    def _close_abandoned(self) -> None:
        while self._abandoned:
            engine = self._abandoned.popleft()
            engine.close()
            if self._latest is engine:
                self._latest = None


class Session:
    """An engine for one call, within `with`: at its end, all that is not finished is aborted.

    `together` batches many requests; it takes up to 3 s, once per pipeline, to measure how many keep the device busy.
    """

    def __init__(self, turns: Turns, *, together: bool = False) -> None:
        self._turns = turns
        with turns.turn():
            if together:
                self._engine = Engine(turns.model, Options(Policy.FIFO, measured=turns.measured, expected=READ_AHEAD))
                turns.measured = self._engine.measured
            else:
                self._engine = Engine(turns.model, Options(Policy.FIFO, tokens=1, together=False, overlap=False))

    @property
    def wants_more(self) -> bool:
        """Whether the engine may run out of requests that wait."""
        return self._engine.waiting < READ_AHEAD

    def add(
        self,
        id_: str,
        request: ImageRequest,
        on_step: OnStep | None = None,
        wants_preview: WantsPreview | None = None,
    ) -> None:
        """Enqueue a request. Raises InvalidInput if it cannot be used."""
        with self._turns.turn():
            self._engine.add(id_, request, on_step, wants_preview=wants_preview)

    def step(self) -> list[Outcome]:
        """Take one step, when it is this call's turn; return what is finished."""
        return self._turns.step(self._engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns.close(self._engine)
