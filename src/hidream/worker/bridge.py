"""The bridge between the event loop and the model thread, the only thread that may use the model.

There is one thread, because a model computes one thing at a time. It is not the event loop's, because leases must be
renewed while the model computes. All calls for the thread go into one queue, and each step of an engine is an entry of
that queue: the next step is queued behind the calls that arrived during the last one. So requests join and leave
between any two steps, and an idle thread waits.

There may be several engines, one for each model. Engines with requests share the thread's time fairly, not its steps:
one step of a huge image takes as long as hundreds of steps of a small one. Each engine has a *virtual time*, to which
each step adds its duration. The engine with the smallest goes next, and an engine that was idle starts at the virtual
time of the latest step. (Start-time fair queueing, as keys share the queue in `store/admission`.) So while an engine
generates for hours, a small image of another one waits for the end of one step. Then it has the thread until its engine
has used as much time.

An engine returns the errors of single requests. An exception that a step raises belongs to no single request: all
requests of the engine fail with it, and the thread goes on. If that happens twice in a row, the bridge is `broken`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hidream.errors import Interrupted, TaskFailed
from hidream.request import ImageRequest
from hidream.types import Size
from hidream.worker.failure import reason

if TYPE_CHECKING:
    from hidream.engine.loop import Outcome, WantsPreview
    from hidream.images.prepared import Prepared
    from hidream.model.pipeline import GeneratedImage, OnStep

T = TypeVar("T")

FAILURES_MAX = 2
"""Failed steps in a row after which a new process is needed; one failure fails all requests of the engine."""

logger = logging.getLogger(__name__)


class ImageEngine(Protocol):
    """What generates images: `engine.loop.Engine`, or an engine without a model in tests. Only for the model thread."""

    def add(
        self,
        id: str,  # noqa: A002
        request: ImageRequest,
        on_step: OnStep | None = None,
        *,
        priority: int = 0,
        wants_preview: WantsPreview | None = None,
        init_image: Prepared | None = None,
    ) -> None:
        """Enqueue a request, a higher `priority` before a lower one; `init_image` has its `init_image_sizes`."""

    def init_image_sizes(self, request: ImageRequest) -> Collection[Size]:
        """Return the sizes at which a request needs its image; this method alone may be called on any thread."""

    def abort(self, id: str) -> bool:  # noqa: A002
        """Remove a request, and free its memory."""

    def step(self) -> Sequence[Outcome]:
        """Run one step, and return the outcomes of the requests that ended."""

    def release_device(self) -> None:
        """Release the device to another engine until the next step."""

    def close(self) -> None:
        """Abort all requests."""


@dataclass(frozen=True, slots=True)
class StepCallbacks:
    """The callbacks for the steps of an image, which run on the model thread."""

    on_step: OnStep
    wants_preview: WantsPreview | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    """A request in an engine: its model, and the future and event loop that wait for its image."""

    model: str
    image: asyncio.Future[GeneratedImage]
    loop: asyncio.AbstractEventLoop


class Bridge:
    """The model thread, as the event loop uses it."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Create a bridge; `clock` measures the duration of steps, in seconds."""
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._latest: concurrent.futures.Future[Any] | None = None
        self._engines: dict[str, ImageEngine] = {}
        self._pending: dict[str, _Pending] = {}  # from here on, only the model thread uses the fields
        self._stepping = False
        self._latest_model: str | None = None  # the model of the latest step
        self._virtual_times: dict[str, float] = {}  # seconds, by model
        self._virtual_time = 0.0  # the virtual time at which the latest step began
        self._failures: Counter[str] = Counter()  # in a row, by model

    @property
    def busy(self) -> bool:
        """Whether the thread is running something, even if it was aborted."""
        return self._stepping or (self._latest is not None and not self._latest.done())

    @property
    def broken(self) -> bool:
        """Whether an engine has failed so often that a new process must take over."""
        return any(count >= FAILURES_MAX for count in self._failures.values())

    async def run(self, function: Callable[[], T], aborted: asyncio.Event) -> T:
        """Run `function` on the thread; return its result, or raise its exception.

        Raises Interrupted as soon as `aborted` is set. That does not stop the function, and the next call waits until
        it ends. So a long function should check `aborted.is_set()` now and then.
        """
        work = asyncio.wrap_future(self._submit(function))
        if await _ends_before(aborted, work):
            return work.result()
        work.add_done_callback(_ignore_outcome)
        raise Interrupted("the work was aborted before it finished")

    def set_engines(self, engines: Mapping[str, ImageEngine]) -> None:
        """Set the engines that `generate` uses, by model; only the model thread may use them."""
        self._engines = dict(engines)

    async def generate(
        self,
        model: str,
        id: str,  # noqa: A002
        request: ImageRequest,
        aborted: asyncio.Event,
        listener: StepCallbacks | None = None,
        prepared: Prepared | None = None,
        priority: int = 0,
    ) -> GeneratedImage:
        """Generate an image with a model's engine, together with its other requests; `id` must be unique.

        Raises the error that the engine reports for the request, and TaskFailed if the engine itself failed. Raises
        Interrupted as soon as `aborted` is set; the engine then removes the request before its next step.
        """
        loop = asyncio.get_running_loop()
        image: asyncio.Future[GeneratedImage] = loop.create_future()
        self._submit(lambda: self._add(id, request, listener, _Pending(model, image, loop), prepared, priority))
        try:
            ended = await _ends_before(aborted, image)
        finally:
            if not image.done():
                image.cancel()
                self._submit(lambda: self._abort(id))
        if not ended:
            raise Interrupted("the image was aborted before it was finished")
        return image.result()

    def init_image_sizes(self, model: str, request: ImageRequest) -> list[Size]:
        """Return the sizes at which a model needs the image of a request."""
        return list(self._engines[model].init_image_sizes(request))

    async def close(self) -> None:
        """Close all engines, and stop the thread; return when the engines are closed."""
        for engine in self._engines.values():
            await asyncio.wrap_future(self._submit(engine.close))
        self._thread.shutdown(wait=False)

    def _submit(self, function: Callable[[], T]) -> concurrent.futures.Future[T]:
        """Queue a call for the model thread."""
        self._latest = work = self._thread.submit(function)
        return work

    # --- on the model thread -----------------------------------------------------------------------------------------

    def _add(
        self,
        id_: str,
        request: ImageRequest,
        listener: StepCallbacks | None,
        pending: _Pending,
        prepared: Prepared | None,
        priority: int,
    ) -> None:
        assert pending.model in self._engines, f"there is no engine for {pending.model!r}"
        assert id_ not in self._pending, f"request {id_!r} exists already"
        on_step, wants_preview = (listener.on_step, listener.wants_preview) if listener else (None, None)
        try:
            self._engines[pending.model].add(
                id_, request, on_step, priority=priority, wants_preview=wants_preview, init_image=prepared
            )
        except Exception as error:  # the edge of a request
            _deliver(pending, None, error)
            return
        if all(each.model != pending.model for each in self._pending.values()):  # an idle engine earns no credit
            self._virtual_times[pending.model] = max(self._virtual_times.get(pending.model, 0.0), self._virtual_time)
        self._pending[id_] = pending
        if not self._stepping:
            self._stepping = True
            self._thread.submit(self._step)

    def _abort(self, id_: str) -> None:
        pending = self._pending.pop(id_, None)
        if pending is not None:
            try:
                self._engines[pending.model].abort(id_)
            except Exception:  # the edge of a request: its remains may corrupt later requests
                logger.exception("engine_failed model=%s", pending.model)
                self._failures[pending.model] = FAILURES_MAX

    def _step(self) -> None:
        """Run a step if there are requests, and queue the next one."""
        model = self._next_model()
        if model is not None:
            try:
                self._step_engine(model)
                self._failures[model] = 0
            except Exception as error:  # the edge of all requests of the engine
                ids = [id_ for id_, pending in self._pending.items() if pending.model == model]
                logger.exception("engine_failed model=%s requests=%s", model, ",".join(ids))
                self._failures[model] += 1
                self._fail_all(ids, error)
        self._stepping = bool(self._pending)
        if self._stepping:
            self._thread.submit(self._step)

    def _next_model(self) -> str | None:
        """Return the model with the smallest virtual time among those with requests; round robin among equals."""
        busy = {pending.model for pending in self._pending.values()}
        models = list(self._engines)
        after = models.index(self._latest_model) + 1 if self._latest_model in self._engines else 0
        candidates = (model for model in models[after:] + models[:after] if model in busy)
        return min(candidates, key=lambda model: self._virtual_times[model], default=None)

    def _step_engine(self, model: str) -> None:
        if self._latest_model not in (None, model):
            self._engines[self._latest_model].release_device()
        self._latest_model = model
        self._virtual_time, begun = self._virtual_times[model], self._clock()
        try:
            outcomes = self._engines[model].step()
        finally:
            self._virtual_times[model] += self._clock() - begun
        for outcome in outcomes:
            _deliver(self._pending.pop(outcome.id), outcome.image, outcome.error)

    def _fail_all(self, ids: Sequence[str], error: Exception) -> None:
        for id_ in ids:
            pending = self._pending[id_]
            self._abort(id_)
            _deliver(pending, None, TaskFailed(reason(error, id_)))  # one each: raising an exception changes it


async def _ends_before(aborted: asyncio.Event, work: asyncio.Future[Any]) -> bool:
    """Wait until the work ends or `aborted` is set; return whether the work has ended."""
    aborting = asyncio.create_task(aborted.wait())
    try:
        await asyncio.wait((work, aborting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        aborting.cancel()
    return work.done()


def _deliver(pending: _Pending, image: GeneratedImage | None, error: Exception | None) -> None:
    """Pass the outcome of a request from the model thread to its event loop."""

    def settle() -> None:
        if pending.image.done():  # aborted meanwhile
            return
        if error is None:
            assert image is not None, "a request ends with an image or an error"
            pending.image.set_result(image)
        else:
            pending.image.set_exception(error)

    with suppress(RuntimeError):  # the loop is closed: the process ends, and nothing waits
        pending.loop.call_soon_threadsafe(settle)


def _ignore_outcome(work: asyncio.Future[T]) -> None:
    if not work.cancelled():
        work.exception()  # otherwise asyncio would report that the exception was never retrieved
