"""What the two kinds of database share: what `database.py` knows of them, and how tables are brought up to date."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from hidream.errors import ConfigurationError, StoreUnavailable
from hidream.store.changes import Changes

_PASSING_SQLITE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
_PASSING_POSTGRESQL = ("08", "40", "53", "55", "57", "58")
"""Classes of SQLSTATE: connection, deadlock, resources, locks, a server that stops or starts, its system."""


@dataclass(frozen=True, slots=True)
class Backend:
    """How one connects, writes, and hears of what others commit.

    `one_writer` is set where transactions that write come one after the other anyway: then those of one process wait
    for each other in the order in which they came. `lock` lets a transaction wait for others that said the same.
    `announce` is what a transaction says at its end, so that others look again.
    """

    writer: AsyncEngine
    reader: AsyncEngine
    changes: Changes
    one_writer: bool
    lock: sa.TextClause | None = None
    announce: sa.TextClause | None = None


def migrate(connection: sa.Connection) -> None:
    """Bring the tables to the newest step, in a transaction that keeps others from doing the same."""
    from alembic import command  # here, because it is slow to import and only the start needs it
    from alembic.config import Config

    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextmanager
def of_ours(url: sa.URL, accepted: str) -> Iterator[None]:
    """Say what is wrong with a database that cannot be opened or migrated.

    Raises ConfigurationError, or StoreUnavailable where that passes by itself.
    """
    from alembic.util import CommandError

    try:
        yield
    except (sa.exc.DBAPIError, OSError) as error:
        if passes(error):
            raise unavailable(error) from error
        raise refused(url, getattr(error, "orig", error), accepted) from error
    except CommandError as error:  # it names a step that is not known here
        raise refused(url, error, accepted) from error


def passes(error: Exception) -> bool:
    """Whether an error is no fault of what was asked: the database is away, full, or locked for too long."""
    if not isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, sa.exc.TimeoutError | OSError)
    primary_code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # the other bits say more of the same
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    return error.connection_invalidated or primary_code in _PASSING_SQLITE or sqlstate[:2] in _PASSING_POSTGRESQL


def unavailable(error: Exception) -> StoreUnavailable:
    """Make the error that says so."""
    return StoreUnavailable(f"the database does not answer: {getattr(error, 'orig', None) or error or 'time-out'}")


def refused(url: sa.URL, why: object, accepted: str) -> ConfigurationError:
    """Make the error that names a database's URL, without its password."""
    return ConfigurationError(f"the database URL is {shown(url)}: {why}; accepted: {accepted}")


def shown(url: sa.URL) -> str:
    """Write a URL without its password."""
    return url.render_as_string(hide_password=True)
