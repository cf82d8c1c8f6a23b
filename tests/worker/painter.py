"""An engine without a model: it fills each image with a colour that follows from the seed, step by step."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np

from hidream.images.prepared import Prepared
from hidream.request import ImageRequest
from hidream.types import Step, Timings

STEPS = 4


@dataclass(frozen=True)
class GeneratedImage:
    pixels: np.ndarray
    timings: Timings
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    id: str
    image: GeneratedImage | None
    error: Exception | None


@dataclass
class Painter:
    """Draws in `STEPS` steps of `pace_s` whatever it has, together; before each it waits for `go_on`.

    Seeds of `refused` raise when they are added, seeds of `bad` end in an error of their own, and those of `fatal`
    raise out of the step. Previews are wide, and of the colour of the image.
    """

    go_on: threading.Event = field(default_factory=threading.Event)
    painting: threading.Event = field(default_factory=threading.Event)
    refused: dict[int, Exception] = field(default_factory=dict)
    bad: dict[int, Exception] = field(default_factory=dict)
    fatal: dict[int, Exception] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    requests: list[ImageRequest] = field(default_factory=list)
    prepared: list[Prepared | None] = field(default_factory=list)
    priorities: list[int] = field(default_factory=list)
    together: list[frozenset[int]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    pace_s: float = 0.0
    rests: int = 0
    closed: bool = False
    here: dict[str, tuple] = field(default_factory=dict)

    @property
    def seeds(self):
        return [request.seed for request in self.requests]

    def init_image_sizes(self, request):
        return [request.size]

    def add(self, id, request, on_step=None, *, priority=0, wants_preview=None, init_image=None):  # noqa: A002
        self.threads.add(threading.get_ident())
        self.requests.append(request)
        self.prepared.append(init_image)
        self.priorities.append(priority)
        if request.seed in self.refused:
            raise self.refused[request.seed]
        self.here[id] = request, on_step, wants_preview, [0]

    def abort(self, id):  # noqa: A002
        self.threads.add(threading.get_ident())
        self.aborted.append(id)
        return self.here.pop(id, None) is not None

    def step(self):
        self.threads.add(threading.get_ident())
        self.together.append(frozenset(request.seed for request, *_ in self.here.values()))
        self.painting.set()
        assert self.go_on.wait(30)
        time.sleep(self.pace_s)
        for request, on_step, wants_preview, done in self.here.values():
            if request.seed in self.fatal:
                raise self.fatal[request.seed]
            done[0] += 1
            if on_step:
                wanted = wants_preview is not None and done[0] < STEPS and wants_preview(done[0])
                preview = np.full((30, 600, 3), request.seed % 256, np.uint8) if wanted else None
                on_step(Step(done[0], STEPS, preview))
        ended = {id_: request for id_, (request, *_, done) in self.here.items() if done[0] == STEPS}
        for id_ in ended:
            del self.here[id_]
        return [self.outcome(id_, request) for id_, request in ended.items()]

    def release_device(self):
        self.threads.add(threading.get_ident())
        self.rests += 1

    def close(self):
        self.here.clear()
        self.closed = True

    def outcome(self, id_, request):
        if request.seed in self.bad:
            return Outcome(id_, None, self.bad[request.seed])
        pixels = np.full((request.size.height, request.size.width, 3), request.seed % 256, np.uint8)
        return Outcome(id_, GeneratedImage(pixels, Timings(0.1, 0.2, 0.3), self.warnings), None)
