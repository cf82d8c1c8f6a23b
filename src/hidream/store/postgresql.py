"""PostgreSQL: one server, for any number of processes on any number of machines.

Its transactions run beside each other; a claim passes over rows that another one holds (SKIP LOCKED). At its end a
transaction says NOTIFY, and so every process that LISTENs hears of a commit at once; while its own listening connection
is down, it looks once in a while, as all who wait do anyway.
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
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from hidream.errors import ConfigurationError
from hidream.store.backend import Backend, migrate, of_ours
from hidream.store.changes import Changes

DRIVER = "postgresql+asyncpg"
ACCEPTED = f"{DRIVER}://USER:PASSWORD@HOST/DATABASE of a server that runs, empty or of a release that is not newer"

CONNECTIONS = 8
"""Of one process, beside the one that listens; a statement takes a millisecond, so a few serve many requests."""
WAIT_S = 5.0
"""How long a connection may take to be made, and how long one waits for a free one."""
RECONNECT_S = 0.5
"""Pause before a listening connection that was lost is made anew."""
CHANNEL = "hidream"

_LOCK = sa.text(f"SELECT pg_advisory_xact_lock(hashtext('{CHANNEL}'))")
_ANNOUNCE = sa.text(f"SELECT pg_notify('{CHANNEL}', '')")

logger = logging.getLogger(__name__)


@asynccontextmanager
async def connect(url: sa.URL) -> AsyncIterator[Backend]:
    """Open a database, migrated if need be. Raises ConfigurationError when it cannot be, or is none of ours."""
    engine = _engine(url)
    heard = _Heard()
    try:
        with of_ours(url, ACCEPTED):
            async with engine.begin() as connection:
                await connection.execute(_LOCK)
                await connection.run_sync(migrate)
        reader = engine.execution_options(isolation_level="AUTOCOMMIT")
        listening = asyncio.create_task(_listen(url, heard))
        try:
            changes = Changes(lambda: heard.count)
            yield Backend(engine, reader, changes, one_writer=False, lock=_LOCK, announce=_ANNOUNCE)
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
    finally:
        await engine.dispose()


@dataclass(slots=True)
class _Heard:
    """How often something was said on the channel."""

    count: int = 0

    def more(self, *_: object) -> None:
        self.count += 1


def _engine(url: sa.URL) -> AsyncEngine:
    try:
        return create_async_engine(
            url,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=WAIT_S,
            pool_pre_ping=True,  # a server that was started anew has forgotten our connections
            connect_args={"timeout": WAIT_S},
        )
    except ImportError as error:
        raise ConfigurationError("PostgreSQL needs asyncpg; accepted: pip install 'hidream[postgresql]'") from error


async def _listen(url: sa.URL, heard: _Heard) -> None:
    """Hear what is said, as long as this is not cancelled; a lost connection counts as something heard."""
    import asyncpg

    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    while True:
        try:
            connection: Any = await asyncpg.connect(dsn, timeout=WAIT_S)
            lost = asyncio.Event()
            connection.add_termination_listener(lambda *_, lost=lost: lost.set())
            try:
                await connection.add_listener(CHANNEL, heard.more)
                heard.more()  # for what was said before
                await lost.wait()
            finally:
                connection.terminate()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            logger.warning("listening_failed error=%s", error)
        heard.more()
        await asyncio.sleep(RECONNECT_S)
