"""One database: opening it, the two ways to talk to it, and work beside the callers.

`write()` is a transaction; `read()` is a connection without one. What is committed survives the death of the process
and of the machine. Which of two kinds it is, the URL says: a file of SQLite (`sqlite.py`) for one machine, PostgreSQL
(`postgresql.py`) for any number of them. The statements of this room are the same for both. This file knows no table.
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
"""How often one looks whether the database's file is still the one that was opened; each write looks too."""
CHECKED_S = 1.0
"""For how long the answer of a check is good: health checks cost nothing, however many there are."""
CHECK_S = 1.5
"""How long a check is waited for; one that takes longer goes on, and nobody begins another beside it."""

logger = logging.getLogger(__name__)


class Database:
    """An open database, for one event loop.

    `gone` is set when its file was deleted or replaced: nothing can be read or written any more, and the process ends.
    """

    def __init__(self, backend: Backend, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.changes = backend.changes
        self.gone = asyncio.Event()
        self.cached_sums = CachedSums(self.now_ms)
        self._backend = backend
        self._writing = asyncio.Lock()
        self._timeouts = 0  # how often one that was in turn has waited in vain
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
        """Open the database at a SQLAlchemy URL, migrated if need be; `clock` gives epoch seconds.

        One that is not there, or is empty, is made, unless `make` is false.
        Raises ConfigurationError on a URL that is not accepted, on a database that is none of ours, and on one that is
        not to be made; DatabaseUnavailable on one that does not answer.
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
        """Read the clock that all times are written down by."""
        return round(self._clock() * 1000)

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run work that outlives whoever asked for it; it must end soon after `changes.stop()`.

        The database is closed when it has ended: a connection in use cannot be.
        """
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    @asynccontextmanager
    async def write(self, *, exclusive: bool = False, quiet: bool = False) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that may write; it commits at the end of the block unless that raises.

        Nothing but the database may be waited for within the block: others wait for its end. `alone` lets no other
        such transaction run meanwhile, in any process. One that changed nothing wakes nobody who waits for changes, and
        neither does one that is `quiet`, where that can be avoided.
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
            self._refuse_if_gone()  # what was committed is nowhere, and nobody must be told that it is
        except DatabaseUnavailable:
            self._write_failed = True
            raise
        self._write_failed = False

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection that only reads. Raises DatabaseUnavailable when the database does not answer."""
        self._refuse_if_gone()
        with self._wrap_errors():
            async with self._backend.reader.connect() as connection:
                yield connection

    async def check(self) -> None:
        """See that what is written now would be stored, in CHECK_S at the most. Raises DatabaseUnavailable.

        All who ask within CHECKED_S get the same answer. What a write has found to be wrong stays wrong until a write,
        or a check that commits, has gone well.
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
        """Look now whether the database's file is another one, and say so; all who use it are told."""
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
        while not self.check_file():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(FILE_CHECK_S)

    async def _probe(self) -> str:
        """Say what is wrong; empty if nothing is."""
        durably = self._write_failed
        try:
            with self._wrap_errors():
                await self._backend.check(durably)
        except DatabaseUnavailable as error:
            return error.message
        finally:
            self._checked_until = self._now() + CHECKED_S
        self._write_failed = self._write_failed and not durably
        return ""

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    @asynccontextmanager
    async def _write_slot(self, exclusive: bool) -> AsyncIterator[None]:
        """Let those of this process write in the order in which they came, where that is one after the other anyway.

        Who has waited behind one that waited in vain does so too: it would wait for as long once more.
        """
        if not (self._backend.one_writer or (exclusive and self._backend.lock is not None)):
            yield
            return
        in_vain = self._timeouts
        async with self._writing:
            if self._timeouts != in_vain:
                raise DatabaseUnavailable("the database does not answer: it has been locked, or away, for too long")
            try:
                yield
            except (sa.exc.SQLAlchemyError, OSError) as error:
                self._timeouts += is_timeout(error)
                raise

    @contextmanager
    def _wrap_errors(self) -> Iterator[None]:
        """Make an error of ours of what a database raises: that it is away, full, damaged, or locked for too long.

        What is left is a fault of ours. Its text may quote prompts, and so may SQLAlchemy's: neither goes further.
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
