"""SQLite: one file, for all processes of one machine.

A transaction that writes holds the write lock from its first moment, so that nothing read in it can be out of date
when it commits (write-ahead log, synchronous FULL). Others' commits are heard of by polling a counter of the file's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from hidream.errors import ConfigurationError
from hidream.store.backend import Backend, migrate, of_ours, refused, shown
from hidream.store.changes import Changes

DRIVER = "sqlite+aiosqlite"
ACCEPTED = f"{DRIVER}:///FILE, a file that may be written, new or of a release that is not newer"

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


@asynccontextmanager
async def connect(url: sa.URL) -> AsyncIterator[Backend]:
    """Open a file, made and migrated if need be. Raises ConfigurationError on one that is no database of ours."""
    with closing(_watching(url)) as watching:
        engine = _engine(url)
        try:
            await _migrate(engine)
            changes = Changes(lambda: _data_version(watching))
            yield Backend(engine, engine.execution_options(read_only=True), changes, one_writer=True)
        finally:
            await engine.dispose()


def _watching(url: sa.URL) -> sqlite3.Connection:
    """Open the file to hear of commits, and before `aiosqlite` does: that leaves a thread behind where it cannot."""
    try:
        return sqlite3.connect(_path(url), timeout=0, isolation_level=None)
    except sqlite3.OperationalError as error:
        raise refused(url, error, ACCEPTED) from error


def _path(url: sa.URL) -> str:
    if not url.database or url.database == ":memory:":
        raise ConfigurationError(f"the database URL is {shown(url)}; accepted: {DRIVER}:///FILE")
    try:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(url, f"its folder cannot be made: {error.strerror}", ACCEPTED) from error
    return url.database


def _engine(url: sa.URL) -> AsyncEngine:
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
    """Bring the tables to the newest step; of several processes that start at once, one does it."""
    with of_ours(engine.url, ACCEPTED):
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
