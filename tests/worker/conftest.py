"""A worker's surroundings without a model: a painter that fills the picture with a colour made from the seed."""

import asyncio
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from hidream.types import ImageRequest, Timings

STEPS = 4


@dataclass
class Picture:
    pixels: np.ndarray
    timings: Timings
    warnings: tuple[str, ...] = ()


@dataclass
class Painter:
    """Draws in `STEPS` steps; before the second it waits for `go_on`."""

    go_on: threading.Event = field(default_factory=threading.Event)
    painting: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    warnings: tuple[str, ...] = ()
    requests: list[ImageRequest] = field(default_factory=list)

    @property
    def seeds(self):
        return [request.seed for request in self.requests]

    def generate(self, request, on_step):
        self.requests.append(request)
        for step in range(STEPS):
            on_step(step + 1, STEPS)
            self.painting.set()
            assert self.go_on.wait(30)
        if self.error:
            raise self.error
        pixels = np.full((request.size.height, request.size.width, 3), request.seed % 256, np.uint8)
        return Picture(pixels, Timings(0.1, 0.2, 0.3), self.warnings)


@pytest.fixture
def painter():
    painter = Painter()
    painter.go_on.set()
    yield painter
    painter.go_on.set()


@pytest.fixture
def url(tmp_path):
    return f"sqlite+aiosqlite:///{tmp_path}/hidream.db"


@pytest.fixture
def until():
    """Wait in the loop until a function says something true."""

    async def until(function):
        async with asyncio.timeout(20):
            while not (answer := function()):
                await asyncio.sleep(0.002)
        return answer

    return until
