"""One database: opening it, bringing its tables up to date, and the two ways to talk to it.

`write()` is a transaction that holds the write lock from its first moment, so that nothing read in it can be
out of date when it commits; `read()` is a connection without one. What is committed survives the death of the
process and of the machine (SQLite: write-ahead log, synchronous FULL). This file knows no table.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from hidream.errors import ConfigurationError
from hidream.store.changes import Changes

BUSY_TIMEOUT_MS = 30_000
"""How long a statement waits for another process's write before it is an error."""

CONNECTIONS = 4
"""Each has a thread of its own; a statement takes a millisecond, so a few serve many requests."""

_PRAGMAS = (
    f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
)


class Database:
    """An open database, for one event loop."""

    def __init__(self, engine: AsyncEngine, changes: Changes, clock: Callable[[], float]) -> None:
        self.changes = changes
        self._engine = engine
        self._reader = engine.execution_options(read_only=True)
        self._writing = asyncio.Lock()
        self._clock = clock

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, clock: Callable[[], float] = time.time) -> AsyncIterator[Database]:
        """Open the database at a SQLAlchemy URL, made and migrated if need be; `clock` gives epoch seconds.

        Raises ConfigurationError on a URL that is not one of a SQLite file, and on a file that is no database of ours.
        """
        path = _sqlite_path(url)
        engine = _engine(url)
        try:
            await _migrate(engine)
            with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as watching:
                database = cls(engine, Changes(lambda: _data_version(watching)), clock)
                try:
                    yield database
                finally:
                    database.changes.stop()
        finally:
            await engine.dispose()

    def now_ms(self) -> int:
        """Read the clock that all times are written down by."""
        return round(self._clock() * 1000)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that may write; it commits at the end of the block unless that raises."""
        async with self._writing, self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection that only reads."""
        async with self._reader.connect() as connection:
            yield connection


def _sqlite_path(url: str) -> str:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ConfigurationError(f"the database URL is not one that SQLAlchemy reads: {error}") from error
    if parsed.drivername != "sqlite+aiosqlite" or not parsed.database or parsed.database == ":memory:":
        raise ConfigurationError(f"the database URL is {_shown(parsed)}; accepted: sqlite+aiosqlite:///FILE")
    try:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(parsed, f"its folder cannot be made: {error.strerror}") from error
    return parsed.database


def _unusable(url: sa.URL, why: object) -> ConfigurationError:
    return ConfigurationError(
        f"the database URL is {_shown(url)}: {why}; "
        "accepted: sqlite+aiosqlite:///FILE, a file that may be written, new or of a release that is not newer"
    )


def _shown(url: sa.URL) -> str:
    return url.render_as_string(hide_password=True)


def _engine(url: str) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=CONNECTIONS, max_overflow=0)

    @sa.event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own class
        connection.isolation_level = None  # the driver opens no transactions by itself: `on_begin` does
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        if not connection.get_execution_options().get("read_only"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _data_version(connection: sqlite3.Connection) -> int:
    """Read SQLite's count of other connections' commits: microseconds, and it waits for no lock."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


async def _migrate(engine: AsyncEngine) -> None:
    """Bring the tables to the newest step; of several processes that start at once, one does it.

    Raises ConfigurationError, but not for a file that somebody else has locked for too long: that passes by itself.
    """
    from alembic.util import CommandError

    try:
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade)
    except sa.exc.DBAPIError as error:
        if _is_locked(error):
            raise
        raise _unusable(engine.url, error.orig) from error
    except CommandError as error:  # it names a step that is not known here
        raise _unusable(engine.url, error) from error


def _is_locked(error: sa.exc.DBAPIError) -> bool:
    extended = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return extended & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)  # the low byte is the primary code


def _upgrade(connection: sa.Connection) -> None:
    from alembic import command  # here, because it is slow to import and only the start needs it
    from alembic.config import Config

    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
