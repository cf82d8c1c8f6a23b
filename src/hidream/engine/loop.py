"""The engine: add and abort requests at any time, call `step` repeatedly, and collect the finished images.

    engine = Engine(model, Options())
    engine.add("a", ImageRequest("a cat", Size(512, 512), seed=1))
    while engine.busy:
        for outcome in engine.step():
            ...

One step is one call of the transformer for the requests that the scheduler chooses. A request's image does not depend
on the others: on a CPU it is that of `pipeline.generate` to the last bit (`matmul.py` says why), on other devices to
the rounding of their matrix products.

Knows no clients, files or threads. An engine belongs to the one thread that owns the model; other threads reach it
through the worker's bridge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from hidream.engine.capacity import Capacity, measure, memory_for_requests, usable_bytes
from hidream.engine.request import Limits, Policy
from hidream.engine.runner import Runner
from hidream.engine.scheduler import Scheduler
from hidream.errors import InvalidInput
from hidream.images.prepared import Prepared
from hidream.model.latents.init_image import InitImage
from hidream.model.latents.preview import Preview, fit_preview
from hidream.model.model import Model
from hidream.model.pipeline import AfterStep, GeneratedImage, OnStep, PreparedRequest, init_image_sizes, prepare
from hidream.request import ImageRequest
from hidream.types import Size, Step


@dataclass(frozen=True, slots=True)
class Options:
    """How an engine works.

    `tokens` of a step and `memory_bytes` for requests are measured when they are 0. `together` computes the requests of
    a step as one batch; None means on a CPU only if a measurement shows that batching keeps their bits (without oneDNN
    it may not), and always elsewhere, where no batch keeps them. `overlap` of None means on a CUDA device only.
    `expected` is the number of waiting requests whose texts are encoded ahead, where that overlaps.

    For several engines in one process: `share` is this engine's share of the measured memory. `measured` is what
    another engine has measured with a model of the same shape. Engines whose models share text encoders share
    `encoding`, because encoders and tokenizers are for one thread at a time.
    """

    policy: Policy = Policy.SRPT
    tokens: int = 0
    memory_bytes: int = 0
    requests: int | None = None
    ageing: float = 0.1
    priority_weight: int = 115_000  # tokens per level: a 1024² image of the published model, 28 steps of 4,096
    together: bool | None = None
    overlap: bool | None = None
    expected: int = 4
    share: float = 1.0
    measured: Capacity | None = None
    encoding: Lock = field(default_factory=Lock)


WantsPreview = Callable[[int], bool]
"""Called before `OnStep` with the number of steps done, except after the last: whether to make a preview."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished request: its image, or its error."""

    id: str
    image: GeneratedImage | None
    error: Exception | None


@dataclass(frozen=True, slots=True)
class _Active:
    """A request that is here."""

    prepared: PreparedRequest
    after_step: AfterStep


class Engine:
    """Generates the images of many requests with one model."""

    def __init__(self, model: Model, options: Options | None = None) -> None:
        self._model, options = model, options or Options()
        overlap = model.device.type == "cuda" if options.overlap is None else options.overlap
        together, tokens = options.together, options.tokens
        self.measured = options.measured
        if not tokens or together is None:
            self.measured = options.measured or measure(model)
            tokens = tokens or self.measured.tokens
            together = model.device.type != "cpu" or self.measured.same_bits if together is None else together
        memory_bytes = options.memory_bytes or int(options.share * memory_for_requests(model, tokens))
        self._usable_bytes = usable_bytes(model)
        self.limits = Limits(tokens, memory_bytes, options.requests)
        self._scheduler = Scheduler(options.policy, self.limits, options.ageing, options.priority_weight)
        self._runner = Runner(model, overlap, together, options.encoding)
        self._expected = options.expected
        self._active: dict[str, _Active] = {}
        self._finishing: dict[str, Future[GeneratedImage]] = {}
        self._preview: Preview | None = None

    def add(
        self,
        id: str,  # noqa: A002 - what it is
        request: ImageRequest,
        on_step: OnStep | None = None,
        *,
        priority: int = 0,
        wants_preview: WantsPreview | None = None,
        init_image: Prepared | None = None,
    ) -> None:
        """Enqueue a request; `init_image` is its image at `init_image_sizes`, decoded elsewhere.

        `on_step` is called after each of its steps, with a preview where `wants_preview` says so. Raises InvalidInput
        on an id that is in use, on what `pipeline.prepare` cannot use, and on a size for which there is not enough
        memory even without other requests.
        """
        prepared = self._prepare(request, init_image)
        work = self._runner.work(id, prepared, priority)
        needed = work.memory_bytes + self._runner.peak_bytes(prepared)
        self._check_memory(request.size, needed)
        self._scheduler.add(dataclasses.replace(work, memory_bytes=self._counted_bytes(work.memory_bytes, needed)))
        self._active[id] = _Active(prepared, self._after_step(prepared, on_step, wants_preview))
        if self._scheduler.waiting <= self._expected:
            self._runner.expect(prepared)

    def init_image_sizes(self, request: ImageRequest) -> frozenset[Size]:
        """Return the sizes at which a request needs its init image; may be called from any thread."""
        return init_image_sizes(self._model, request)

    def abort(self, id: str) -> bool:  # noqa: A002 - what it is
        """Forget a request and free its memory; return whether it was here. An image that is being decoded is lost."""
        self._scheduler.abort(id)
        self._runner.drop(id)
        self._finishing.pop(id, None)
        return self._active.pop(id, None) is not None

    @property
    def busy(self) -> bool:
        """Whether there are requests."""
        return bool(self._active)

    @property
    def waiting(self) -> int:
        """Number of requests that have not begun."""
        return self._scheduler.waiting

    @torch.inference_mode()
    def step(self) -> list[Outcome]:
        """Take one step of the requests that the scheduler chooses; return those that are finished."""
        batch = self._scheduler.batch()
        failed = self._runner.begin(
            {id_: (self._active[id_].prepared, self._active[id_].after_step) for id_ in batch.admitted}
        )
        ids = [id_ for id_ in batch.ids if id_ not in failed]
        if ids:
            finishing, errors = self._runner.step(ids)
            self._finishing |= finishing
            failed |= errors
        elif self._finishing:
            next(iter(self._finishing.values())).exception()  # nothing else to do but wait for it
        for id_ in failed:
            self._scheduler.abort(id_)
        self._scheduler.advance(batch)
        return [self._end(id_, None, error) for id_, error in failed.items()] + self._finished()

    def release_device(self) -> None:
        """Release the device until the next step: offloaded weights leave it, and another engine may use it."""
        self._runner.release_device()

    def close(self) -> None:
        """Abort all requests."""
        for id_ in list(self._active):
            self.abort(id_)
        self._runner.close()

    def _prepare(self, request: ImageRequest, init_image: Prepared | None) -> PreparedRequest:
        """Prepare a request. It shares the init image of one that differs only in its seed, as a task's images do."""
        if init_image is not None:
            return prepare(self._model, request, InitImage.of(init_image))
        active = (each.prepared for each in self._active.values())
        alike = (each for each in active if dataclasses.replace(each.request, seed=request.seed) == request)
        return prepare(self._model, request, next((each.init_image for each in alike), None))

    def _counted_bytes(self, memory_bytes: int, needed: int) -> int:
        """Return the memory that a request counts for: one larger than the limit is not refused, but counts as all.

        It leaves the reserve to others only if the machine has that in addition to what the request really needs.
        """
        beside = self.limits.reserve_bytes if needed + self.limits.reserve_bytes <= self._usable_bytes else 0
        return min(memory_bytes, self.limits.memory_bytes - beside)

    def _check_memory(self, size: Size, needed: int) -> None:
        """Raise InvalidInput on a request that needs more memory than has ever been free."""
        if needed > self._usable_bytes:
            self._usable_bytes = max(self._usable_bytes, usable_bytes(self._model))
        if needed > self._usable_bytes:
            raise InvalidInput(
                f"size is {size}: this request needs {needed / 1e9:.1f} GB in addition to the model's weights, and "
                f"{self._usable_bytes / 1e9:.1f} GB are available; accepted: a smaller size"
            )

    def _finished(self) -> list[Outcome]:
        done = {id_: future for id_, future in self._finishing.items() if future.done()}
        outcomes = []
        for id_, future in done.items():
            del self._finishing[id_]
            error = future.exception()
            assert error is None or isinstance(error, Exception), "an interrupt is not an outcome"
            outcomes.append(self._end(id_, None if error else future.result(), error))
        return outcomes

    def _end(self, id_: str, image: GeneratedImage | None, error: Exception | None) -> Outcome:
        del self._active[id_]
        return Outcome(id_, image, error)

    def _after_step(
        self, prepared: PreparedRequest, on_step: OnStep | None, wants_preview: WantsPreview | None
    ) -> AfterStep:
        """Make the function that is called after each step of a request."""

        def after_step(done: int, x0: Tensor) -> None:
            if on_step is not None:
                wanted = wants_preview is not None and done < prepared.steps and wants_preview(done)
                on_step(Step(done, prepared.steps, self._render_preview(x0) if wanted else None))

        return after_step

    def _render_preview(self, x0: Tensor) -> np.ndarray:
        if self._preview is None:
            with self._model.phases.autoencoding():
                self._preview = fit_preview(self._model.vae)
        return self._preview.render(x0)
