"""The database: opening it, reading, writing, health checks, and background work that uses it.

`write()` opens a transaction; `read()` a connection without one. Committed data survive a crash of the process and of
the machine. The URL selects the backend: an SQLite file (`sqlite.py`) for one machine, or PostgreSQL (`postgresql.py`)
for any number of machines. Both run the same statements. This file knows no tables.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.errors import ConfigurationError, DatabaseGone, DatabaseUnavailable
from hidream.store import postgresql, sqlite
from hidream.store.backend import (
    CHANGED,
    Backend,
    damaged,
    is_damaged,
    is_timeout,
    is_transient,
    reason,
    redacted,
    unavailable,
)
from hidream.store.cached_sums import CachedSums

BACKENDS = {sqlite.DRIVER: sqlite.connect, postgresql.DRIVER: postgresql.connect}

FILE_CHECK_S = 1.0
"""How often to check that the database's file is still the one that was opened; each write checks it too."""
CHECKED_S = 1.0
"""How long the result of a health check is cached: any number of them costs next to nothing."""
CHECK_S = 1.5
"""How long to wait for a health check; a longer one continues, and no second one starts meanwhile."""

logger = logging.getLogger(__name__)


class Database:
    """An open database, for one event loop.

    `gone` is set when its file was deleted or replaced: nothing can be read or written any more; the process must exit.
    """

    def __init__(self, backend: Backend, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.changes = backend.changes
        self.gone = asyncio.Event()
        self.cached_sums = CachedSums(self.now_ms)
        self._backend = backend
        self._writing = asyncio.Lock()
        self._timeouts = 0  # how often a writer that was next has timed out
        self._write_failed = False
        self._damaged: DatabaseUnavailable | None = None
        self._gone = ""
        self._checking: asyncio.Task[str] | None = None
        self._checked_until = -math.inf
        self._background: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, clock: Callable[[], float] = time.time, *, make: bool = True
    ) -> AsyncIterator[Database]:
        """Open the database at an SQLAlchemy URL and migrate it if needed. `clock` returns epoch seconds.

        A database that does not exist, or is empty, is created, unless `make` is false.
        Raises ConfigurationError if the URL is not accepted, or the database is not hidream's or must not be created,
        and DatabaseUnavailable if it does not answer.
        """
        parsed = _parsed(url)
        async with BACKENDS[parsed.drivername](parsed, make) as backend:
            database = cls(backend, clock)
            looking = asyncio.create_task(database._watch_file())
            try:
                yield database
            finally:
                looking.cancel()
                backend.changes.stop()
                checking = [database._checking] if database._checking else []
                await asyncio.gather(looking, *checking, *database._background, return_exceptions=True)

    def now_ms(self) -> int:
        """Read the clock that all stored times come from."""
        return round(self._clock() * 1000)

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run work that outlives its caller; it must end soon after `changes.stop()`.

        The database waits for it before closing: a connection that is in use cannot be closed.
        """
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    @asynccontextmanager
    async def write(self, *, exclusive: bool = False, quiet: bool = False) -> AsyncIterator[AsyncConnection]:
        """Open a write transaction; it commits at the end of the block unless the block raises.

        Await nothing but the database within the block: other writers wait for its end. While an `exclusive`
        transaction runs, no other exclusive one does, in any process. A transaction that changes nothing does not wake
        those who wait for changes; neither does a `quiet` one, where the backend allows it.
        Raises DatabaseUnavailable when the database does not answer.
        """
        backend = self._backend
        self._refuse_if_gone()
        try:
            with self._wrap_errors():
                async with self._write_slot(exclusive), backend.writer.begin() as connection:
                    if exclusive and backend.lock is not None:
                        await connection.execute(backend.lock)
                    yield connection
                    if backend.announce is not None and not quiet and connection.info[CHANGED]:
                        await connection.execute(backend.announce)
            self.check_file()
            self._refuse_if_gone()  # the commit went to a lost file: it must not be acknowledged
        except DatabaseUnavailable:
            self._write_failed = True
            raise
        self._write_failed = False

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a read connection. Raises DatabaseUnavailable when the database does not answer."""
        self._refuse_if_gone()
        with self._wrap_errors():
            async with self._backend.reader.connect() as connection:
                yield connection

    async def check(self) -> None:
        """Check, in at most CHECK_S, that a write would succeed. Raises DatabaseUnavailable.

        The result is cached for CHECKED_S. After a failed write the check commits; until that or another write has
        succeeded, the database counts as unavailable.
        """
        self.check_file()
        self._refuse_if_gone()
        if self._damaged is not None:
            raise self._damaged
        checking = self._checking
        if checking is None or (checking.done() and self._now() >= self._checked_until):
            checking = self._checking = asyncio.create_task(self._probe())
        await asyncio.wait([checking], timeout=CHECK_S)
        if not checking.done():
            raise DatabaseUnavailable("the database does not answer: a check of it takes too long")
        if why := checking.result():
            raise DatabaseUnavailable(why)

    def check_file(self) -> bool:
        """Check whether the database's file was lost; if so, set `gone` and end all waits. Return the result."""
        if not self._gone and (what := self._backend.gone()):
            self._gone = what
            logger.error("database_gone error=%s", what)
            self.gone.set()
            self.changes.stop()
        return bool(self._gone)

    def _refuse_if_gone(self) -> None:
        if self._gone:
            raise DatabaseGone(f"the database is gone: {self._gone}")

    async def _watch_file(self) -> None:
        while not self.check_file():  # noqa: ASYNC110 - nothing notifies us
            await asyncio.sleep(FILE_CHECK_S)

    async def _probe(self) -> str:
        """Say what is wrong; empty if nothing is."""
        durable = self._write_failed
        try:
            with self._wrap_errors():
                await self._backend.check(durable)
        except DatabaseUnavailable as error:
            return error.message
        finally:
            self._checked_until = self._now() + CHECKED_S
        self._write_failed = self._write_failed and not durable
        return ""

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    @asynccontextmanager
    async def _write_slot(self, exclusive: bool) -> AsyncIterator[None]:
        """Queue this process's writers first come, first served, where they cannot run concurrently.

        When a writer times out, those behind it fail as well: each would wait as long once more.
        """
        if not (self._backend.one_writer or (exclusive and self._backend.lock is not None)):
            yield
            return
        in_vain = self._timeouts
        async with self._writing:
            if self._timeouts != in_vain:
                raise DatabaseUnavailable("the database does not answer: it was locked or unreachable for too long")
            try:
                yield
            except (sa.exc.SQLAlchemyError, OSError) as error:
                self._timeouts += is_timeout(error)
                raise

    @contextmanager
    def _wrap_errors(self) -> Iterator[None]:
        """Turn a database's error into ours: it is unreachable, full, corrupt, or locked for too long.

        Any other error is a bug. Its text, and SQLAlchemy's, may quote prompts, so it is not passed on.
        """
        try:
            yield
        except (sa.exc.SQLAlchemyError, OSError) as error:
            if is_damaged(error):
                self._damaged = damaged(error)
                logger.error("database_damaged error=%s", reason(error))
                raise self._damaged from None
            if is_transient(error) or isinstance(error, sa.exc.OperationalError):
                raise unavailable(error) from error
            if isinstance(error, sa.exc.StatementError):
                raise RuntimeError(f"the database has refused a statement: {reason(error)}") from None
            raise


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ConfigurationError(f"the database URL is not one that SQLAlchemy reads: {error}") from error
    if parsed.drivername not in BACKENDS:
        raise ConfigurationError(
            f"the database URL is {redacted(parsed)}; accepted: {sqlite.DRIVER}:///FILE, "
            f"{postgresql.DRIVER}://USER:PASSWORD@HOST/DATABASE"
        )
    return parsed
