"""Read by mypy alone: what tests put in the place of ours has the interface of what it replaces.

Each function returns stand-ins as what they stand for. Their own modules are not typed, so mypy compares the names of
methods and of their parameters, what is optional, and what is asynchronous.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from fast_worker import FastPainter
    from painter import Painter
    from test_loop import Clock, Flaky, Meanwhile, Slow
    from test_removal import Away, Hangs

    from hidream.outputs.object_store import ObjectStore
    from hidream.store.database import Database
    from hidream.worker.bridge import ImageEngine


def drawers(painter: Painter, fast: FastPainter) -> tuple[ImageEngine, ...]:
    """Return what draws without a model."""
    return painter, fast


def places(slow: Slow, meanwhile: Meanwhile, away: Away, hangs: Hangs) -> tuple[ObjectStore, ...]:
    """Return places for files that do not do what they are told at once."""
    return slow, meanwhile, away, hangs


def databases(flaky: Flaky) -> Database:
    """Return a database that is away now and then."""
    return flaky


def clocks(clock: Clock) -> Callable[[], float]:
    """Return a clock that a test moves."""
    return clock
