"""Read by mypy alone: what tests put in the place of ours, outside `fakes.py`, has the interface of what it replaces.

Each function returns fakes as what they stand for; where the real one is a class and no protocol, it returns the real
one beside them, as the protocol that both must have. The fakes' own modules are not typed, so mypy compares the names
of methods and of their parameters, what is optional, and what is asynchronous.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from crash.planted import Later
    from crash.story import Clock
    from fakes import NoChecker, NoModel
    from hidream.model.model import Model
    from hidream.outputs.object_store import ObjectStore
    from hidream.safety.image import ImageChecker, Pixels
    from hidream.types import Mode
    from hidream.worker.bridge import ImageEngine
    from soak.fast_worker import FastPainter
    from worker.painter import Painter
    from worker.test_bridge import Work


class Writes(Protocol):
    """The part of an object store that a worker writes images with."""

    async def write(self, name: str, data: bytes) -> None:
        """Write a file."""


class HasVersions(Protocol):
    """The part of a model that a worker reads."""

    def version_of(self, mode: Mode) -> str:
        """Return the version of a mode."""


class Checks(Protocol):
    """The part of the image check that a worker calls."""

    def flagged(self, pixels: Pixels) -> bool:
        """Return whether an image is flagged."""


def engines(painter: Painter, fast: FastPainter) -> tuple[ImageEngine, ...]:
    """Return what generates without a model."""
    return painter, fast


def stores(real: ObjectStore, later: Later) -> tuple[Writes, ...]:
    """Return what writes images."""
    return real, later


def models(real: Model, none: NoModel) -> tuple[HasVersions, ...]:
    """Return what has versions."""
    return real, none


def checkers(real: ImageChecker, none: NoChecker) -> tuple[Checks, ...]:
    """Return what checks images."""
    return real, none


def clocks(story: Clock, work: Work) -> tuple[Callable[[], float], ...]:
    """Return clocks that go on by themselves, or with the work."""
    return story, work
