"""The engine: add requests and abort them at any time, call `step` again and again, take the finished pictures.

    engine = Engine(model, Options())
    engine.add("a", ImageRequest("a cat", Size(512, 512), seed=1))
    while engine.busy:
        for outcome in engine.step():
            ...

One step is one call of the transformer for as many requests as the scheduler lets take part. What a request gets does
not depend on who else does: on a CPU its picture is that of `pipeline.generate` to the last bit (`packed.py` says
why), on other devices to the rounding of their products.

Knows no clients, files or threads: all of it is for the one thread that owns the model; the worker's bridge is how
others reach it.
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
from hidream.model.latents.init_image import Canvas
from hidream.model.latents.preview import Preview, fit_preview
from hidream.model.model import Model
from hidream.model.pipeline import Picture, Sketch, Tick, canvas_sizes, outline
from hidream.types import ImageRequest, Size


@dataclass(frozen=True, slots=True)
class Options:
    """How an engine works.

    `tokens` of a step and `memory_bytes` for requests are measured when they are 0. `together` computes a step's
    requests in one go; None means on a CPU only if that was measured to keep their bits (a CPU without oneDNN may not),
    and always elsewhere, where no batch keeps them. `overlap` of None means on a CUDA device only. `expected` is for
    how many waiting requests texts are encoded ahead, where that overlaps.

    For several engines in one process: `share` is this one's of the memory that is measured; `measured` is what another
    one has found with a model of equal form, and need not be found again; engines whose models share text encoders
    share `encoding`, because encoders and tokenizers are for one thread at a time.
    """

    policy: Policy = Policy.SRPT
    tokens: int = 0
    memory_bytes: int = 0
    requests: int | None = None
    ageing: float = 0.1
    head_start: int = 115_000  # what a 1024² picture of the published model takes: 28 steps of 4,096 tokens
    together: bool | None = None
    overlap: bool | None = None
    expected: int = 4
    share: float = 1.0
    measured: Capacity | None = None
    encoding: Lock = field(default_factory=Lock)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is: steps done and in all, and perhaps a small picture [h, w, 3] of what it will show."""

    id: str
    done: int
    total: int
    preview: np.ndarray | None


OnProgress = Callable[[Progress], None]
"""Called on the engine's thread after each step of a request; what it raises ends the request."""
WantsPreview = Callable[[int], bool]
"""Asked there with the number of steps done, but for the last, whether the progress shall have a preview."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request's end: its picture, or what went wrong."""

    id: str
    picture: Picture | None
    error: Exception | None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that is here."""

    sketch: Sketch
    tick: Tick


class Engine:
    """Draws many requests with one model."""

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
        self._scheduler = Scheduler(options.policy, self.limits, options.ageing, options.head_start)
        self._runner = Runner(model, overlap, together, options.encoding)
        self._expected = options.expected
        self._asked: dict[str, _Asked] = {}
        self._finishing: dict[str, Future[Picture]] = {}
        self._preview: Preview | None = None

    def add(
        self,
        id: str,  # noqa: A002 - what it is
        request: ImageRequest,
        on_progress: OnProgress | None = None,
        *,
        priority: int = 0,
        wants_preview: WantsPreview | None = None,
        prepared: Prepared | None = None,
    ) -> None:
        """Let a request wait for its turn; `prepared` is its image at `canvas_sizes`, read elsewhere.

        `on_progress` is called after each of its steps, with a preview where `wants_preview` says so. Raises
        InvalidInput on an id that is here already, on what `pipeline.outline` cannot use, and on a size for which
        there is not enough memory even if nobody else is here.
        """
        sketch = self._outline(request, prepared)
        work = self._runner.work(id, sketch, priority)
        needed = work.memory_bytes + self._runner.peak_bytes(sketch)
        self._check_memory(request.size, needed)
        self._scheduler.add(dataclasses.replace(work, memory_bytes=self._counted_bytes(work.memory_bytes, needed)))
        self._asked[id] = _Asked(sketch, self._tick(id, sketch, on_progress, wants_preview))
        if self._scheduler.waiting <= self._expected:
            self._runner.expect(sketch)

    def canvas_sizes(self, request: ImageRequest) -> frozenset[Size]:
        """Say at which sizes a request needs its image; may be asked from any thread."""
        return canvas_sizes(self._model, request)

    def abort(self, id: str) -> bool:  # noqa: A002 - what it is
        """Forget a request and free what it holds; whether there was one. A picture that is being decoded is lost."""
        self._scheduler.abort(id)
        self._runner.drop(id)
        self._finishing.pop(id, None)
        return self._asked.pop(id, None) is not None

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._asked)

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return self._scheduler.waiting

    @torch.inference_mode()
    def step(self) -> list[Outcome]:
        """Take one step of those whose turn it is; return the requests that came to an end."""
        batch = self._scheduler.batch()
        failed = self._runner.begin({id_: (self._asked[id_].sketch, self._asked[id_].tick) for id_ in batch.admitted})
        ids = [id_ for id_ in batch.ids if id_ not in failed]
        if ids:
            finishing, errors = self._runner.step(ids)
            self._finishing |= finishing
            failed |= errors
        elif self._finishing:
            next(iter(self._finishing.values())).exception()  # nothing else to do than to wait for it
        for id_ in failed:
            self._scheduler.abort(id_)
        self._scheduler.advance(batch)
        return [self._end(id_, None, error) for id_, error in failed.items()] + self._finished()

    def rest(self) -> None:
        """Let the device go until the next step: what visits it for denoising leaves, and another engine may use it."""
        self._runner.rest()

    def close(self) -> None:
        """Give up whatever is here."""
        for id_ in list(self._asked):
            self.abort(id_)
        self._runner.close()

    def _outline(self, request: ImageRequest, prepared: Prepared | None) -> Sketch:
        """Settle a request; one that is here and differs by its seed alone, as a task's images do, lends its canvas."""
        if prepared is not None:
            return outline(self._model, request, Canvas.of(prepared))
        sketches = (asked.sketch for asked in self._asked.values())
        alike = (each for each in sketches if dataclasses.replace(each.request, seed=request.seed) == request)
        return outline(self._model, request, next((each.canvas for each in alike), None))

    def _counted_bytes(self, memory_bytes: int, needed: int) -> int:
        """What a request counts for: one larger than the memory for requests is not refused, but has all of it.

        It leaves the reserve to others only if the machine has that beside what it really needs.
        """
        beside = self.limits.reserve_bytes if needed + self.limits.reserve_bytes <= self._usable_bytes else 0
        return min(memory_bytes, self.limits.memory_bytes - beside)

    def _check_memory(self, size: Size, needed: int) -> None:
        """Refuse what has never had room since the start. Raises InvalidInput."""
        if needed > self._usable_bytes:
            self._usable_bytes = max(self._usable_bytes, usable_bytes(self._model))
        if needed > self._usable_bytes:
            raise InvalidInput(
                f"size is {size}, for which this request needs {needed / 1e9:.1f} GB beside the model's weights, and "
                f"there are {self._usable_bytes / 1e9:.1f} GB; accepted: a smaller size"
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

    def _end(self, id_: str, picture: Picture | None, error: Exception | None) -> Outcome:
        del self._asked[id_]
        return Outcome(id_, picture, error)

    def _tick(
        self, id_: str, sketch: Sketch, on_progress: OnProgress | None, wants_preview: WantsPreview | None
    ) -> Tick:
        """Make the function that a drawing calls after each step."""

        def tick(done: int, x0: Tensor) -> None:
            if on_progress is not None:
                wanted = wants_preview is not None and done < sketch.steps and wants_preview(done)
                on_progress(Progress(id_, done, sketch.steps, self._draw_preview(x0) if wanted else None))

        return tick

    def _draw_preview(self, x0: Tensor) -> np.ndarray:
        if self._preview is None:
            with self._model.phases.autoencoding():
                self._preview = fit_preview(self._model.vae)
        return self._preview.draw(x0)
