"""One database: opening it, the two ways to talk to it, and work beside the callers.

`write()` is a transaction; `read()` is a connection without one. What is committed survives the death of the process
and of the machine. Which of two kinds it is, the URL says: a file of SQLite (`sqlite.py`) for one machine, PostgreSQL
(`postgresql.py`) for any number of them. The statements of this room are the same for both. This file knows no table.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.errors import ConfigurationError
from hidream.store import postgresql, sqlite
from hidream.store.backend import Backend, passes, shown, unavailable

KINDS = {sqlite.DRIVER: sqlite.connect, postgresql.DRIVER: postgresql.connect}


class Database:
    """An open database, for one event loop."""

    def __init__(self, backend: Backend, clock: Callable[[], float]) -> None:
        self.changes = backend.changes
        self._backend = backend
        self._in_turn: AbstractAsyncContextManager[None] = asyncio.Lock() if backend.one_writer else nullcontext()
        self._clock = clock
        self._beside: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, clock: Callable[[], float] = time.time) -> AsyncIterator[Database]:
        """Open the database at a SQLAlchemy URL, made and migrated if need be; `clock` gives epoch seconds.

        Raises ConfigurationError on a URL that is not accepted and on a database that is none of ours, StoreUnavailable
        on one that does not answer.
        """
        parsed = _parsed(url)
        async with KINDS[parsed.drivername](parsed) as backend:
            database = cls(backend, clock)
            try:
                yield database
            finally:
                backend.changes.stop()
                await asyncio.gather(*database._beside, return_exceptions=True)

    def now_ms(self) -> int:
        """Read the clock that all times are written down by."""
        return round(self._clock() * 1000)

    def beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run work that outlives whoever asked for it; it must end soon after `changes.stop()`.

        The database is closed when it has ended: a connection in use cannot be.
        """
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return task

    @asynccontextmanager
    async def write(self, *, alone: bool = False, quiet: bool = False) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that may write; it commits at the end of the block unless that raises.

        `alone` lets no other such transaction run meanwhile, in any process. `quiet` wakes nobody who waits for
        changes, where that can be avoided. Raises StoreUnavailable when the database does not answer.
        """
        backend = self._backend
        with _telling():
            async with self._in_turn, backend.writer.begin() as connection:
                if alone and backend.lock is not None:
                    await connection.execute(backend.lock)
                yield connection
                if not quiet and backend.announce is not None:
                    await connection.execute(backend.announce)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection that only reads. Raises StoreUnavailable when the database does not answer."""
        with _telling():
            async with self._backend.reader.connect() as connection:
                yield connection


@contextmanager
def _telling() -> Iterator[None]:
    """Make an error of ours of what a database raises that is away, full, or locked for too long."""
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError, OSError) as error:
        if not (passes(error) or isinstance(error, sa.exc.OperationalError)):
            raise
        raise unavailable(error) from error


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ConfigurationError(f"the database URL is not one that SQLAlchemy reads: {error}") from error
    if parsed.drivername not in KINDS:
        raise ConfigurationError(
            f"the database URL is {shown(parsed)}; accepted: {sqlite.DRIVER}:///FILE, "
            f"{postgresql.DRIVER}://USER:PASSWORD@HOST/DATABASE"
        )
    return parsed
