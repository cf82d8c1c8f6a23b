"""What tests put in the place of ours. mypy checks this file as it checks `src`, so that no fake outlives an interface.

A class here does less than the real one, or is away at times. Engines without a model are in `worker/painter.py`;
`interfaces.py` compares them, and what else has to stay elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hidream.errors import DatabaseUnavailable, ObjectStoreUnavailable
from hidream.outputs.folder import Folder
from hidream.store.database import Database
from hidream.types import Mode

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from hidream.safety.image import Pixels


@dataclass
class Clock:
    """A clock, in seconds, that a test sets."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Flaky(Database):
    """A database that can be away; with `deaf`, it commits the next transaction, but its answer is lost."""

    away = deaf = False

    @asynccontextmanager
    async def write(self, *, exclusive: bool = False, quiet: bool = False) -> AsyncIterator[AsyncConnection]:
        """Write, unless it is away."""
        self._refuse_if_away()
        async with super().write(exclusive=exclusive, quiet=quiet) as connection:
            yield connection
        if self.deaf:
            self.deaf = False
            raise DatabaseUnavailable("the answer was lost")

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Read, unless it is away."""
        self._refuse_if_away()
        async with super().read() as connection:
            yield connection

    def _refuse_if_away(self) -> None:
        if self.away:
            raise DatabaseUnavailable("away")


class Slow(Folder):
    """An object store that cannot be written to until `there` is set."""

    there: ClassVar[asyncio.Event]
    tries: ClassVar[int] = 0

    async def write(self, name: str, data: bytes) -> None:
        """Write, once it can be."""
        Slow.tries += 1
        if not Slow.there.is_set():
            raise ObjectStoreUnavailable("the bucket cannot be written to now")
        await super().write(name, data)


class Meanwhile(Folder):
    """An object store whose writes are followed by what a client `does` meanwhile."""

    does: ClassVar[Callable[[], Awaitable[None]]]

    async def write(self, name: str, data: bytes) -> None:
        """Write, and let the client act before the writer goes on."""
        await super().write(name, data)
        await Meanwhile.does()


class Away(Folder):
    """An object store from which nothing can be deleted."""

    async def delete(self, names: Iterable[str]) -> None:
        """Raise."""
        raise ObjectStoreUnavailable("away")


class AwayAtFirst(Folder):
    """An object store from which nothing can be deleted so many `times`."""

    times: ClassVar[int] = 0

    async def delete(self, names: Iterable[str]) -> None:
        """Raise, or delete."""
        if AwayAtFirst.times:
            AwayAtFirst.times -= 1
            raise ObjectStoreUnavailable("away")
        await super().delete(names)


class Hangs(Folder):
    """An object store whose deletions never end."""

    async def delete(self, names: Iterable[str]) -> None:
        """Wait for ever."""
        await asyncio.Event().wait()


class NoModel:
    """What a worker reads of a model, beside its engine."""

    def version_of(self, mode: Mode) -> str:
        """Return the version that tasks are recorded with."""
        return "fast-worker-1"


class NoChecker:
    """An image check that flags nothing."""

    def flagged(self, pixels: Pixels) -> bool:
        """Return False."""
        return False
