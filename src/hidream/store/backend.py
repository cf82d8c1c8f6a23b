"""What the two kinds of database share: what `database.py` knows of them, and how tables are brought up to date."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from hidream.errors import ConfigurationError, DatabaseUnavailable
from hidream.store.changes import Changes

CHANGED = "changed"
"""Where a connection's `info` says whether the transaction has changed anything."""

_LOCKED_SQLITE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED_SQLITE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PASSING_SQLITE = (*_LOCKED_SQLITE, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY)
_PASSING_POSTGRESQL = ("08", "40", "53", "55", "57", "58")
"""Classes of SQLSTATE: connection, deadlock, resources, locks, a server that stops or starts, its system."""
_DAMAGED_POSTGRESQL = ("XX001", "XX002")
"""SQLSTATE: data corrupted, index corrupted. The rest of their class are faults of a statement, which pass."""
_LOCKED_POSTGRESQL = "55P03"
_READ_ONLY_POSTGRESQL = "25006"
"""A standby, or a server that was made read-only: what is written somewhere else, or later."""


@dataclass(frozen=True, slots=True)
class Backend:
    """How one connects, writes, and hears of what others commit.

    `one_writer` is set where transactions that write come one after the other anyway: then those of one process wait
    for each other in the order in which they came. `lock` lets a transaction wait for others that said the same; those
    of one process wait for each other before they take a connection. `announce` is what a transaction that has changed
    something says at its end, so that others look again. `check` goes through a transaction
    that would write, and takes it back; it has a connection of its own, and raises what the driver does. With
    `durably` it commits what changes nothing. `gone` says, in microseconds, what has become of the database's file
    since it was opened; it is empty as long as nothing has.
    """

    writer: AsyncEngine
    reader: AsyncEngine
    changes: Changes
    one_writer: bool
    check: Callable[[bool], Awaitable[None]]
    gone: Callable[[], str] = lambda: ""
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
def wrap_open_errors(url: sa.URL, accepted: str) -> Iterator[None]:
    """Say what is wrong with a database that cannot be opened or migrated.

    Raises ConfigurationError, or DatabaseUnavailable where that passes by itself.
    """
    from alembic.util import CommandError

    try:
        yield
    except (sa.exc.DBAPIError, OSError) as error:
        if is_transient(error):
            raise unavailable(error) from error
        raise url_error(url, getattr(error, "orig", error), accepted) from error
    except CommandError as error:  # it names a step that is not known here
        raise url_error(url, error, accepted) from error


def is_transient(error: Exception) -> bool:
    """Whether an error is no fault of what was asked: the database is away, full, or locked for too long."""
    if not isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, sa.exc.TimeoutError | OSError)
    code, state = _codes(error)
    passing = code in _PASSING_SQLITE or state[:2] in _PASSING_POSTGRESQL or state == _READ_ONLY_POSTGRESQL
    return error.connection_invalidated or passing


def is_timeout(error: BaseException) -> bool:
    """Whether a lock, or the database itself, was waited for until the time was up."""
    if not isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, TimeoutError | sa.exc.TimeoutError)
    code, state = _codes(error)
    return code in _LOCKED_SQLITE or state == _LOCKED_POSTGRESQL


def is_damaged(error: Exception) -> bool:
    """Whether the database has found that what it reads is not what it wrote."""
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    code, state = _codes(error)
    return code in _DAMAGED_SQLITE or state in _DAMAGED_POSTGRESQL


def reason(error: Exception) -> str:
    """What may be said of a database's error: its kind and first line, but no values, which further lines may have."""
    orig = getattr(error, "orig", None)
    text = str(orig or error).partition("\n")[0] or "time-out"
    if not isinstance(orig, Exception):
        return text
    code, state = _codes(error)
    kind = getattr(orig, "sqlite_errorname", "") or state
    if is_transient(error) or code:
        return f"{text} ({kind})" if code else text
    return f"{type(orig).__name__} {kind}".strip()  # asyncpg quotes arguments, and PostgreSQL rows


def unavailable(error: Exception) -> DatabaseUnavailable:
    """Make the error that says so."""
    return DatabaseUnavailable(f"the database does not answer: {reason(error)}")


def damaged(error: Exception) -> DatabaseUnavailable:
    """Make the error of a database that cannot be trusted any more."""
    return DatabaseUnavailable(
        f"the database is damaged: {reason(error)}; docs/OPERATIONS.md says how to restore a backup"
    )


def _codes(error: Exception) -> tuple[int, str]:
    """Tell SQLite's primary code, or 0, and PostgreSQL's SQLSTATE, or nothing."""
    orig = getattr(error, "orig", None)
    return getattr(orig, "sqlite_errorcode", 0) & 0xFF, getattr(orig, "sqlstate", None) or ""


def url_error(url: sa.URL, why: object, accepted: str) -> ConfigurationError:
    """Make the error that names a database's URL, without its password."""
    return ConfigurationError(f"the database URL is {redacted(url)}: {why}; accepted: {accepted}")


def missing(url: sa.URL) -> ConfigurationError:
    """Make the error of a database that is not to be made, and is not there."""
    return ConfigurationError(
        f"there is no database of this server at {redacted(url)}; accepted: the HIDREAM_HOME, or the "
        "HIDREAM_STORE_DATABASE_URL, that the server runs with, after its first start or `hidream keys create`"
    )


def redacted(url: sa.URL) -> str:
    """Write a URL without its password."""
    return url.render_as_string(hide_password=True)
