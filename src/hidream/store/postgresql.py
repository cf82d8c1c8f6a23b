"""PostgreSQL: one server, for any number of processes on any number of machines.

Transactions run concurrently; a claim skips rows that another one holds (SKIP LOCKED). At its end a transaction sends
NOTIFY, so every process that LISTENs hears of the commit at once. While a process's listening connection is down, its
waiters still query again at their timeouts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from hidream.errors import ConfigurationError, DatabaseUnavailable
from hidream.store.backend import CHANGED, Backend, in_use, migrate, missing, reason, wrap_open_errors
from hidream.store.changes import Changes

DRIVER = "postgresql+asyncpg"
ACCEPTED = f"{DRIVER}://USER:PASSWORD@HOST/DATABASE of a server that runs, empty or of a release that is not newer"

CONNECTIONS = 4
"""Connections of one process that read, and as many that write; a statement takes a millisecond, so a few are enough.

Readers do not wait for writers that wait for a lock. One more connection listens and one checks: ten in all.
"""
WAIT_S = 5.0
"""How long connecting, waiting for a free connection, or a statement may take."""
IDLE_S = 10.0
"""How long a transaction may be idle: a process that hangs must not block the others' writes."""
CHECK_MS = 1_000
"""How long a health check waits for a lock."""
RECONNECT_S = 0.5
"""Pause before a lost listening connection is opened again."""
LEAVING_S = 3.0
"""How long the session of a process that has ended may remain."""
CHANNEL = "hidream"

_TABLES = sa.text("SELECT to_regclass('alembic_version')")
_LOCK = sa.text(f"SELECT pg_advisory_xact_lock(hashtext('{CHANNEL}'))")
_CHECK = sa.text(f"SELECT current_setting('transaction_read_only'), set_config('lock_timeout', '{CHECK_MS}', true)")
_OTHERS = sa.text(
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)
_ANNOUNCE = sa.text(f"SELECT pg_notify('{CHANNEL}', '')")

logger = logging.getLogger(__name__)


@asynccontextmanager
async def connect(url: sa.URL, make: bool = True) -> AsyncIterator[Backend]:
    """Open a database; migrate it if needed, and `make` the tables if there are none.

    Raises ConfigurationError if it is not a hidream database, or has no tables and must not get them.
    """
    await _migrate(url, make)
    writer, readers, checker = (_engine(url, WAIT_S, count) for count in (CONNECTIONS, CONNECTIONS + 1, 1))
    _track_changes(writer)
    heard = _Notifications()
    try:
        reader = readers.execution_options(isolation_level="AUTOCOMMIT")
        listening = asyncio.create_task(_listen_forever(reader, heard))
        try:
            changes = Changes(lambda: heard.count)
            yield Backend(
                writer,
                reader,
                changes,
                one_writer=False,
                check=lambda _durable: _check(checker),
                lock=_LOCK,
                announce=_ANNOUNCE,
            )
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
    finally:
        for engine in (writer, readers, checker):
            await engine.dispose()


@asynccontextmanager
async def connect_alone(url: sa.URL, make: bool) -> AsyncIterator[AsyncConnection]:
    """Open a database that no other session has open, in a transaction that the caller commits.

    Meanwhile, processes of hidream that open it wait: they need the same lock. The tables are migrated in this
    transaction, and `make` creates them. Raises InvalidInput if there is another session, and what `connect` raises.
    """
    engine = _engine(url, None, 1, idle_s=0)
    try:
        async with contextlib.AsyncExitStack() as stack:
            with wrap_open_errors(url, ACCEPTED):
                connection = await stack.enter_async_context(engine.connect())
                await connection.execute(_LOCK)
                if not make and (await connection.execute(_TABLES)).scalar() is None:
                    raise missing(url)
                if others := await _others(connection):
                    raise in_use(url, f"{others} other session{'s' * (others > 1)}")
                await connection.run_sync(migrate)
            yield connection
    finally:
        await engine.dispose()


async def _others(connection: AsyncConnection) -> int:
    """Count the other sessions of the database, when those that are ending have had LEAVING_S to do so."""
    clock = asyncio.get_running_loop().time
    until = clock() + LEAVING_S
    while others := int((await connection.execute(_OTHERS)).scalar_one()):
        if clock() > until:
            break
        await connection.execute(sa.text("SELECT pg_stat_clear_snapshot()"))
        await asyncio.sleep(0.1)
    return others


def _track_changes(engine: AsyncEngine) -> None:
    """Record for each connection whether its transaction has changed a row: only then it notifies others."""

    @sa.event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        connection.info[CHANGED] = False

    @sa.event.listens_for(engine.sync_engine, "after_cursor_execute")
    def on_executed(connection: sa.Connection, cursor: Any, statement: str, *_: object) -> None:  # noqa: ANN401
        if cursor.rowcount and not statement.startswith("SELECT"):  # -1, where it is not known
            connection.info[CHANGED] = True


async def _check(engine: AsyncEngine) -> None:
    """Take the lock of exclusive transactions in a write transaction, and release it."""
    async with engine.connect() as connection, connection.begin() as transaction:
        read_only, _ = (await connection.execute(_CHECK)).one()
        if read_only == "on":
            raise DatabaseUnavailable("the database takes no writes: it is a standby, or was set to read-only")
        await connection.execute(_LOCK)
        await transaction.rollback()


@dataclass(slots=True)
class _Notifications:
    """How many notifications have arrived."""

    count: int = 0

    def add(self, *_: object) -> None:
        self.count += 1


async def _migrate(url: sa.URL, make: bool) -> None:
    """Migrate to the newest revision; of several processes that start at once, one does it. It may take long."""
    engine = _engine(url, None, 1)
    try:
        with wrap_open_errors(url, ACCEPTED):
            async with engine.begin() as connection:
                await connection.execute(_LOCK)
                if not make and (await connection.execute(_TABLES)).scalar() is None:
                    raise missing(url)
                await connection.run_sync(migrate)
    finally:
        await engine.dispose()


def _engine(url: sa.URL, statement_s: float | None, connections: int, idle_s: float = IDLE_S) -> AsyncEngine:
    """Make an engine; `statement_s` limits a statement and its wait for a lock, None means no limit.

    `idle_s` is how long a transaction may be idle; 0 means no limit.
    """
    server = {"idle_in_transaction_session_timeout": f"{idle_s * 1000:.0f}"}
    if statement_s is not None:
        server["lock_timeout"] = f"{statement_s * 900:.0f}"  # before the driver closes the connection
    try:
        return create_async_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=WAIT_S,
            pool_pre_ping=True,  # a restarted server does not know our connections
            connect_args={"timeout": WAIT_S, "command_timeout": statement_s, "server_settings": server},
            hide_parameters=True,
        )
    except ImportError as error:
        raise ConfigurationError("PostgreSQL needs asyncpg; accepted: pip install 'hidream[postgresql]'") from error


async def _listen_forever(engine: AsyncEngine, heard: _Notifications) -> None:
    """Listen until cancelled; a lost connection counts as a notification."""
    import asyncpg

    while True:
        try:
            async with engine.connect() as connection:
                try:
                    await _listen_once(connection, heard)
                finally:
                    await connection.invalidate()  # a connection that listens must not return to the pool
        except (OSError, sa.exc.SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            logger.warning("listening_failed error=%s", reason(error))
        heard.add()
        await asyncio.sleep(RECONNECT_S)


async def _listen_once(connection: AsyncConnection, heard: _Notifications) -> None:
    """Listen until the connection is lost."""
    driver: Any = (await connection.get_raw_connection()).driver_connection
    lost = asyncio.Event()
    driver.add_termination_listener(lambda *_: lost.set())
    await driver.add_listener(CHANNEL, heard.add)
    heard.add()  # for what was sent before
    await lost.wait()
