"""SQLite: one file, for all processes of one machine.

A write transaction takes the write lock when it begins, so that what it has read is still true when it commits
(write-ahead log, synchronous FULL). To hear of other processes' commits, this process polls a counter of the file.

Readers never wait for writers: they have connections of their own, so a process that hangs while it holds the lock
blocks other writers only. If the file is deleted or replaced while it is in use, writes are lost. So its identity is
checked (`gone`).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from hidream.errors import ConfigurationError
from hidream.store.backend import Backend, in_use, is_timeout, migrate, missing, redacted, url_error, wrap_open_errors
from hidream.store.changes import Changes

DRIVER = "sqlite+aiosqlite"
ACCEPTED = f"{DRIVER}:///FILE, a file that may be written, new or of a release that is not newer"

BUSY_TIMEOUT_MS = 5_000
"""How long a statement waits for another process's write before it fails: a write takes milliseconds."""

CHECK_MS = 1_000
"""The same for a health check, for which a load balancer waits."""

CONNECTIONS = 4
"""Connections that read; each has its own thread. A statement takes a millisecond, so a few serve many requests."""

_PRAGMAS = (
    f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
)


@asynccontextmanager
async def connect(url: sa.URL, make: bool = True) -> AsyncIterator[Backend]:
    """Open a file; migrate it if needed, and `make` it if it does not exist.

    Raises ConfigurationError if it is not a hidream database, or does not exist and must not be created.
    """
    if not make and not is_there(url):
        raise missing(url)
    with closing(_watching(url)) as watching:
        writer, reader, checker = _engine(url, 1), _engine(url, CONNECTIONS), _engine(url, 1, CHECK_MS)
        try:
            await _migrate(writer)
            files = _Files.of(_path(url))
            yield Backend(
                writer,
                reader.execution_options(read_only=True),
                Changes(lambda: _data_version(watching)),
                one_writer=True,
                check=lambda durable: _check(checker, durable),
                gone=files.gone,
            )
        finally:
            for engine in (writer, reader, checker):
                await engine.dispose()


@asynccontextmanager
async def connect_alone(url: sa.URL, make: bool) -> AsyncIterator[AsyncConnection]:
    """Open a file that no other process has open, in a transaction that the caller commits; none can open it meanwhile.

    The tables are migrated in this transaction, and `make` creates a file that does not exist. Raises InvalidInput
    if another process has the file open, and what `connect` raises.
    """
    if not make and not is_there(url):
        raise missing(url)
    _create_private(_path(url))
    engine = create_async_engine(url, hide_parameters=True)

    @sa.event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own class
        connection.isolation_level = None  # the driver opens no transactions: `on_begin` does

    @sa.event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        for statement in ("PRAGMA locking_mode = EXCLUSIVE", *_PRAGMAS, "BEGIN IMMEDIATE"):
            connection.exec_driver_sql(statement)

    try:
        async with engine.connect() as connection:
            with wrap_open_errors(url, ACCEPTED):
                try:
                    await connection.begin()
                except sa.exc.OperationalError as error:
                    raise (in_use(url, "another process") if is_timeout(error) else error) from error
                await connection.run_sync(migrate)
            yield connection
    finally:
        await engine.dispose()


class _Files:
    """The identities of a database's file, its log and its index, as first seen."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._seen: dict[str, tuple[int, int] | None] = dict.fromkeys(paths)

    @classmethod
    def of(cls, path: str) -> _Files:
        """Record the files of an open database: none of them changes until all connections are closed."""
        files = cls([path, f"{path}-wal", f"{path}-shm"])
        files.gone()
        return files

    def gone(self) -> str:
        """Say what happened to them since; empty if nothing did."""
        for path, seen in self._seen.items():
            try:
                found = os.stat(path)  # noqa: PTH116 - on every write
            except FileNotFoundError:
                if seen is not None:
                    return f"{path} was deleted or moved while it was in use"
                continue
            except OSError:  # an unreachable disk does not mean a lost file
                continue
            now = found.st_dev, found.st_ino
            if seen is None:
                self._seen[path] = now
            elif seen != now:
                return f"{path} was replaced by another file while it was in use"
        return ""


async def _check(engine: AsyncEngine, durable: bool) -> None:
    """Take the write lock and release it; if `durable`, write a page to the disk unchanged.

    It is the file's first page: SQLite writes `user_version` even if the number is the same.
    """
    async with engine.connect() as connection, connection.begin() as transaction:
        if durable:
            version = (await connection.exec_driver_sql("PRAGMA user_version")).scalar_one()
            await connection.exec_driver_sql(f"PRAGMA user_version = {version}")
        else:
            await transaction.rollback()


def is_there(url: sa.URL) -> bool:
    """Whether a file has anything in it; one that cannot be looked at is there, and opening it says what is wrong."""
    try:
        return Path(url.database or "").stat().st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _watching(url: sa.URL) -> sqlite3.Connection:
    """Open the file to hear of commits, before `aiosqlite` opens it: on failure, that leaves a thread behind."""
    _create_private(_path(url))
    try:
        return sqlite3.connect(_path(url), timeout=0, isolation_level=None)
    except sqlite3.OperationalError as error:
        raise url_error(url, error, ACCEPTED) from error


def _create_private(path: str) -> None:
    """Create an empty file that only its owner may read, whatever the umask; log and index get the same mode.

    Errors are ignored: SQLite reports them better.
    """
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        Path(path).chmod(0o600)


def _path(url: sa.URL) -> str:
    if not url.database or url.database == ":memory:":
        raise ConfigurationError(f"the database URL is {redacted(url)}; accepted: {DRIVER}:///FILE")
    try:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise url_error(url, f"its folder cannot be made: {error.strerror}", ACCEPTED) from error
    return url.database


def _engine(url: sa.URL, connections: int, busy_ms: int | None = None) -> AsyncEngine:
    pragmas = _PRAGMAS if busy_ms is None else (*_PRAGMAS, f"PRAGMA busy_timeout = {busy_ms}")
    engine = create_async_engine(
        url, pool_size=connections, max_overflow=0, pool_timeout=BUSY_TIMEOUT_MS / 1000, hide_parameters=True
    )

    @sa.event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own class
        connection.isolation_level = None  # the driver opens no transactions: `on_begin` does
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        if not connection.get_execution_options().get("read_only"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _data_version(connection: sqlite3.Connection) -> int:
    """Read SQLite's counter of other connections' commits: takes microseconds, and waits for no lock."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


async def _migrate(engine: AsyncEngine) -> None:
    """Migrate to the newest revision; of several processes that start at once, one does it."""
    with wrap_open_errors(engine.url, ACCEPTED):
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
