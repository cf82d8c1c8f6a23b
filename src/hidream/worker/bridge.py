"""The one way from the event loop to the thread that may touch the model, and back.

One thread, because a model computes one thing at a time; off the loop, because leases have to be renewed meanwhile.
What the thread is told goes into one queue, and each step of the engine is an entry of that queue: the next one is put
behind whatever was said during the last. So requests join and leave between any two steps, and a thread that has
nothing to do waits.

There may be several engines, one for each model. Those that have anything to draw share the thread's time fairly, not
its steps: a step of a huge picture takes as long as hundreds of a small one. Each has its *time*, to which its steps
add what they took; the smallest goes next, and one that had nothing to do begins at the time that is being served.
(Start-time fair queueing, as keys share the queue in `store/admission`.) So where an engine draws what takes hours, a
small picture of another one waits for the end of one step, and then has the thread until it has had as much of it.

An engine returns the errors of single requests. An exception out of a step itself belongs to nobody: all requests of
the engine end with it, and the thread goes on; when an engine does that twice in a row, the bridge is `broken`.
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
    from hidream.engine.loop import OnProgress, Outcome, WantsPreview
    from hidream.images.prepared import Prepared
    from hidream.model.pipeline import GeneratedImage

T = TypeVar("T")

FAILURES_MAX = 2
"""Failed steps in a row after which an engine is not trusted: the first has taken all requests of its time with it."""

logger = logging.getLogger(__name__)


class ImageEngine(Protocol):
    """What draws: `engine.loop.Engine`, or the tests' own, which needs no model. All of it is for the one thread."""

    def add(
        self,
        id: str,  # noqa: A002
        request: ImageRequest,
        on_progress: OnProgress | None = None,
        *,
        wants_preview: WantsPreview | None = None,
        init_image: Prepared | None = None,
    ) -> None:
        """Enqueue a request; `init_image` is its image at `init_image_sizes`."""

    def init_image_sizes(self, request: ImageRequest) -> Collection[Size]:
        """Say at which sizes a request needs its image; this alone is for any thread."""

    def abort(self, id: str) -> bool:  # noqa: A002
        """Forget a request and free what it holds."""

    def step(self) -> Sequence[Outcome]:
        """Take one step, and return the requests that came to an end."""

    def rest(self) -> None:
        """Let another engine have the device until the next step."""

    def close(self) -> None:
        """Give up whatever is here."""


@dataclass(frozen=True, slots=True)
class StepCallbacks:
    """Who is told of a picture's steps, on the model thread."""

    on_progress: OnProgress
    wants_preview: WantsPreview | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    """Whom a request was given to, and who waits for its end."""

    model: str
    answer: asyncio.Future[GeneratedImage]
    loop: asyncio.AbstractEventLoop


class Bridge:
    """The model thread, as seen from the loop."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Make a bridge; `clock` says in seconds what steps took."""
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._latest: concurrent.futures.Future[Any] | None = None
        self._engines: dict[str, ImageEngine] = {}
        self._asked: dict[str, _Pending] = {}  # this and what follows is the thread's
        self._stepping = False
        self._latest_model: str | None = None  # whose step was the latest
        self._virtual_times: dict[str, float] = {}  # seconds that each model has had, or could have had
        self._virtual_time = 0.0  # the time at which the latest step began
        self._failures: Counter[str] = Counter()  # in a row, by model

    @property
    def busy(self) -> bool:
        """Whether the thread still works, be it on something that was given up."""
        return self._stepping or (self._latest is not None and not self._latest.done())

    @property
    def broken(self) -> bool:
        """Whether an engine has failed so often that only a new process helps."""
        return any(count >= FAILURES_MAX for count in self._failures.values())

    async def run(self, function: Callable[[], T], aborted: asyncio.Event) -> T:
        """Run `function` on the thread and return what it returns or raises.

        Raises Interrupted as soon as `given_up` is set. The function itself is not stopped by that: one that
        takes long should look at `given_up.is_set()` now and then, for the next one waits until it ends.
        """
        work = asyncio.wrap_future(self._tell(function))
        if await _ends_before(aborted, work):
            return work.result()
        work.add_done_callback(_outcome_is_of_no_interest)
        raise Interrupted("the work was given up before it was finished")

    def set_engines(self, engines: Mapping[str, ImageEngine]) -> None:
        """Let `draw` use these engines from now on, by their models' names; only the thread may touch them."""
        self._engines = dict(engines)

    async def generate(
        self,
        model: str,
        id: str,  # noqa: A002 - what it is
        request: ImageRequest,
        aborted: asyncio.Event,
        listener: StepCallbacks | None = None,
        prepared: Prepared | None = None,
    ) -> GeneratedImage:
        """Let a model's engine draw a picture, together with whatever else it has; no two requests may have one id.

        Raises what the engine reports of the request; TaskFailed when the engine itself has failed; Interrupted as soon
        as `given_up` is set, and the engine forgets the request before its next step.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[GeneratedImage] = loop.create_future()
        self._tell(lambda: self._add(id, request, listener, _Pending(model, answer, loop), prepared))
        try:
            ended = await _ends_before(aborted, answer)
        finally:
            if not answer.done():
                answer.cancel()
                self._tell(lambda: self._abort(id))
        if not ended:
            raise Interrupted("the picture was given up before it was finished")
        return answer.result()

    def init_image_sizes(self, model: str, request: ImageRequest) -> list[Size]:
        """Say at which sizes a model needs a request's image."""
        return list(self._engines[model].init_image_sizes(request))

    async def close(self) -> None:
        """Let the engines give up whatever they have, and the thread end; returns when all have."""
        for engine in self._engines.values():
            await asyncio.wrap_future(self._tell(engine.close))
        self._thread.shutdown(wait=False)

    def _tell(self, function: Callable[[], T]) -> concurrent.futures.Future[T]:
        """Queue something for the thread."""
        self._latest = work = self._thread.submit(function)
        return work

    # --- on the thread ---------------------------------------------------------------------------------------------

    def _add(
        self,
        id_: str,
        request: ImageRequest,
        listener: StepCallbacks | None,
        asked: _Pending,
        prepared: Prepared | None,
    ) -> None:
        assert asked.model in self._engines, f"nothing draws for {asked.model!r}"
        assert id_ not in self._asked, f"{id_!r} is being drawn already"
        on_progress, wants_preview = (listener.on_progress, listener.wants_preview) if listener else (None, None)
        try:
            self._engines[asked.model].add(id_, request, on_progress, wants_preview=wants_preview, init_image=prepared)
        except Exception as error:  # the edge of a request
            _tell_loop(asked, None, error)
            return
        if all(each.model != asked.model for each in self._asked.values()):  # no time is saved up by resting
            self._virtual_times[asked.model] = max(self._virtual_times.get(asked.model, 0.0), self._virtual_time)
        self._asked[id_] = asked
        if not self._stepping:
            self._stepping = True
            self._thread.submit(self._step)

    def _abort(self, id_: str) -> None:
        asked = self._asked.pop(id_, None)
        if asked is not None:
            try:
                self._engines[asked.model].abort(id_)
            except Exception:  # the edge of a request: what is left of it may spoil all that follow
                logger.exception("engine_failed model=%s", asked.model)
                self._failures[asked.model] = FAILURES_MAX

    def _step(self) -> None:
        """Take a step, if there is anything to draw, and see to it that the next one follows."""
        model = self._next_model()
        if model is not None:
            try:
                self._take(model)
                self._failures[model] = 0
            except Exception as error:  # the edge of all requests that are here
                ids = [id_ for id_, asked in self._asked.items() if asked.model == model]
                logger.exception("engine_failed model=%s requests=%s", model, ",".join(ids))
                self._failures[model] += 1
                self._fail_all(ids, error)
        self._stepping = bool(self._asked)
        if self._stepping:
            self._thread.submit(self._step)

    def _next_model(self) -> str | None:
        """Say who has had the least time of the models that have anything to draw; of equals, who comes round next."""
        busy = {asked.model for asked in self._asked.values()}
        models = list(self._engines)
        after = models.index(self._latest_model) + 1 if self._latest_model in self._engines else 0
        round_ = (model for model in models[after:] + models[:after] if model in busy)
        return min(round_, key=lambda model: self._virtual_times[model], default=None)

    def _take(self, model: str) -> None:
        if self._latest_model not in (None, model):
            self._engines[self._latest_model].rest()
        self._latest_model = model
        self._virtual_time, begun = self._virtual_times[model], self._clock()
        try:
            outcomes = self._engines[model].step()
        finally:
            self._virtual_times[model] += self._clock() - begun
        for outcome in outcomes:
            _tell_loop(self._asked.pop(outcome.id), outcome.picture, outcome.error)

    def _fail_all(self, ids: Sequence[str], error: Exception) -> None:
        for id_ in ids:
            asked = self._asked[id_]
            self._abort(id_)
            _tell_loop(asked, None, TaskFailed(reason(error, id_)))  # each its own: whoever raises one writes into it


async def _ends_before(aborted: asyncio.Event, work: asyncio.Future[Any]) -> bool:
    """Wait for one of the two; whether it was the work, or both."""
    leaving = asyncio.create_task(aborted.wait())
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
    return work.done()


def _tell_loop(asked: _Pending, picture: GeneratedImage | None, error: Exception | None) -> None:
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
