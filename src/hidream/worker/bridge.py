"""The one way from the event loop to the thread that may touch the model, and back.

One thread, because a model computes one thing at a time; off the loop, because leases have to be renewed meanwhile.
What the thread is told goes into one queue, and each step of the engine is an entry of that queue: the next one is put
behind whatever was said during the last. So requests join and leave between any two steps, and a thread that has
nothing to do waits.

An engine returns the errors of single requests. An exception out of a step itself belongs to nobody: all requests of
the engine end with it, and the thread goes on; an engine that does that twice in a row is `broken`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hidream.errors import Interrupted, TaskFailed
from hidream.types import ImageRequest

if TYPE_CHECKING:
    from hidream.engine.loop import OnProgress, Outcome
    from hidream.model.pipeline import Picture

T = TypeVar("T")

FAILURES_MAX = 2
"""Failed steps in a row after which an engine is not trusted: the first has taken all requests of its time with it."""

logger = logging.getLogger(__name__)


class Drawer(Protocol):
    """What draws: `engine.loop.Engine`, or the tests' own, which needs no model. All of it is for the one thread."""

    def add(self, id: str, request: ImageRequest, on_progress: OnProgress | None = None) -> None:  # noqa: A002
        """Let a request wait for its turn."""

    def abort(self, id: str) -> bool:  # noqa: A002
        """Forget a request and free what it holds."""

    def step(self) -> Sequence[Outcome]:
        """Take one step, and return the requests that came to an end."""

    def close(self) -> None:
        """Give up whatever is here."""


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """Who waits for a request's end."""

    answer: asyncio.Future[Picture]
    loop: asyncio.AbstractEventLoop


class Bridge:
    """The model thread, as seen from the loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._latest: concurrent.futures.Future[Any] | None = None
        self._engine: Drawer | None = None
        self._asked: dict[str, _Asked] = {}  # this and what follows is the thread's
        self._stepping = False
        self._failures = 0

    @property
    def busy(self) -> bool:
        """Whether the thread still works, be it on something that was given up."""
        return self._stepping or (self._latest is not None and not self._latest.done())

    @property
    def broken(self) -> bool:
        """Whether the engine has failed so often that only a new process helps."""
        return self._failures >= FAILURES_MAX

    async def run(self, function: Callable[[], T], given_up: asyncio.Event) -> T:
        """Run `function` on the thread and return what it returns or raises.

        Raises Interrupted as soon as `given_up` is set. The function itself is not stopped by that: one that
        takes long should look at `given_up.is_set()` now and then, for the next one waits until it ends.
        """
        work = asyncio.wrap_future(self._tell(function))
        if await _ends_before(given_up, work):
            return work.result()
        work.add_done_callback(_outcome_is_of_no_interest)
        raise Interrupted("the work was given up before it was finished")

    def drive(self, engine: Drawer) -> None:
        """Let `draw` use this engine from now on; only the thread may touch it."""
        self._engine = engine

    async def draw(
        self,
        id: str,  # noqa: A002 - what it is
        request: ImageRequest,
        given_up: asyncio.Event,
        on_progress: OnProgress | None = None,
    ) -> Picture:
        """Let the engine draw a picture, together with whatever else it has; no two requests may have one id.

        `on_progress` is called on the thread. Raises what the engine reports of the request; TaskFailed when the engine
        itself has failed; Interrupted as soon as `given_up` is set, and the engine forgets the request before its next
        step.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Picture] = loop.create_future()
        self._tell(lambda: self._add(id, request, on_progress, _Asked(answer, loop)))
        try:
            ended = await _ends_before(given_up, answer)
        finally:
            if not answer.done():
                answer.cancel()
                self._tell(lambda: self._abort(id))
        if not ended:
            raise Interrupted("the picture was given up before it was finished")
        return answer.result()

    async def close(self) -> None:
        """Let the engine give up whatever it has, and the thread end; returns when both have."""
        if self._engine is not None:
            await asyncio.wrap_future(self._tell(self._engine.close))
        self._thread.shutdown(wait=False)

    def _tell(self, function: Callable[[], T]) -> concurrent.futures.Future[T]:
        """Queue something for the thread."""
        self._latest = work = self._thread.submit(function)
        return work

    # --- on the thread ---------------------------------------------------------------------------------------------

    def _add(self, id_: str, request: ImageRequest, on_progress: OnProgress | None, asked: _Asked) -> None:
        assert self._engine is not None, "nothing draws yet"
        assert id_ not in self._asked, f"{id_!r} is being drawn already"
        try:
            self._engine.add(id_, request, on_progress)
        except Exception as error:  # the edge of a request
            _tell_loop(asked, None, error)
            return
        self._asked[id_] = asked
        if not self._stepping:
            self._stepping = True
            self._thread.submit(self._step)

    def _abort(self, id_: str) -> None:
        if self._asked.pop(id_, None) is not None and self._engine is not None:
            try:
                self._engine.abort(id_)
            except Exception:  # the edge of a request: what is left of it may spoil all that follow
                logger.exception("engine_failed")
                self._failures = FAILURES_MAX

    def _step(self) -> None:
        """Take a step, if there is anything to draw, and see to it that the next one follows."""
        if self._asked and self._engine is not None:
            try:
                for outcome in self._engine.step():
                    _tell_loop(self._asked.pop(outcome.id), outcome.picture, outcome.error)
                self._failures = 0
            except Exception as error:  # the edge of all requests that are here
                logger.exception("engine_failed")
                self._failures += 1
                self._fail_all(f"the engine failed: {type(error).__name__}: {error}")
        self._stepping = bool(self._asked)
        if self._stepping:
            self._thread.submit(self._step)

    def _fail_all(self, message: str) -> None:
        failed = dict(self._asked)
        for id_ in failed:
            self._abort(id_)
        for asked in failed.values():
            _tell_loop(asked, None, TaskFailed(message))  # each its own: whoever raises one writes into it


async def _ends_before(given_up: asyncio.Event, work: asyncio.Future[Any]) -> bool:
    """Wait for one of the two; whether it was the work, or both."""
    leaving = asyncio.create_task(given_up.wait())
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
    return work.done()


def _tell_loop(asked: _Asked, picture: Picture | None, error: Exception | None) -> None:
    """Bring a request's end to the loop, from the thread."""

    def settle() -> None:
        if asked.answer.done():  # given up meanwhile
            return
        if error is None:
            assert picture is not None, "a request ends with a picture or an error"
            asked.answer.set_result(picture)
        else:
            asked.answer.set_exception(error)

    with suppress(RuntimeError):  # the loop is closed: the process ends, and nobody waits
        asked.loop.call_soon_threadsafe(settle)


def _outcome_is_of_no_interest(work: asyncio.Future[T]) -> None:
    if not work.cancelled():
        work.exception()  # asyncio reports exceptions that nobody has looked at
