"""The interface of the two database backends, their errors, and schema migration."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from hidream.errors import ConfigurationError, DatabaseUnavailable, InvalidInput
from hidream.store.changes import Changes

CHANGED = "changed"
"""The key in a connection's `info` for whether the transaction has changed a row."""

_LOCKED_SQLITE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED_SQLITE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PASSING_SQLITE = (*_LOCKED_SQLITE, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY)
_PASSING_POSTGRESQL = ("08", "40", "53", "55", "57", "58")
"""Classes of SQLSTATE: connection, deadlock, resources, locks, server start or stop, system errors."""
_DAMAGED_POSTGRESQL = ("XX001", "XX002")
"""SQLSTATE: data corrupted, index corrupted. Other codes of this class concern one statement only."""
_LOCKED_POSTGRESQL = "55P03"
_READ_ONLY_POSTGRESQL = "25006"
"""A standby, or a server that was set to read-only: writes may work elsewhere or later."""


@dataclass(frozen=True, slots=True)
class Backend:
    """How to connect, to write, and to hear of other processes' commits.

    `one_writer`: the database runs one write transaction at a time, so writers of one process queue first come, first
    served. `lock`: a statement that takes the lock of exclusive transactions; those of one process queue for it before
    they take a connection. `announce`: a statement that notifies other processes, at the end of a transaction that has
    changed something. `check`: begins a write transaction and rolls it back, on a connection of its own; with `durable`
    true it commits a write that changes nothing; raises the driver's errors. `gone`: takes microseconds, and returns
    what happened to the database's file since it was opened, or an empty text.
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
    """Migrate the tables to the newest revision, in a transaction that excludes other migrations."""
    from alembic import command  # imported here: it is slow, and only needed at the start
    from alembic.config import Config

    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextmanager
def wrap_open_errors(url: sa.URL, accepted: str) -> Iterator[None]:
    """Turn the errors of opening and migrating a database into ours.

    Raises DatabaseUnavailable for transient errors, else ConfigurationError.
    """
    from alembic.util import CommandError

    try:
        yield
    except (sa.exc.DBAPIError, OSError) as error:
        if is_transient(error):
            raise unavailable(error) from error
        raise url_error(url, getattr(error, "orig", error), accepted) from error
    except CommandError as error:  # it names a revision that this release does not know
        raise url_error(url, error, accepted) from error


def is_transient(error: Exception) -> bool:
    """Whether the statement is not to blame: the database is unreachable, full, or locked for too long."""
    if not isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, sa.exc.TimeoutError | OSError)
    code, state = _codes(error)
    passing = code in _PASSING_SQLITE or state[:2] in _PASSING_POSTGRESQL or state == _READ_ONLY_POSTGRESQL
    return error.connection_invalidated or passing


def is_timeout(error: BaseException) -> bool:
    """Whether waiting for a lock, or for the database itself, timed out."""
    if not isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, TimeoutError | sa.exc.TimeoutError)
    code, state = _codes(error)
    return code in _LOCKED_SQLITE or state == _LOCKED_POSTGRESQL


def is_damaged(error: Exception) -> bool:
    """Whether the database reports that its data are corrupt."""
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    code, state = _codes(error)
    return code in _DAMAGED_SQLITE or state in _DAMAGED_POSTGRESQL


def reason(error: Exception) -> str:
    """Describe a database error by its code and first line; further lines may contain values, such as prompts."""
    orig = getattr(error, "orig", None)
    text = str(orig or error).partition("\n")[0] or "time-out"
    if not isinstance(orig, Exception):
        return text
    code, state = _codes(error)
    kind = getattr(orig, "sqlite_errorname", "") or state
    if is_transient(error) or code:
        return f"{text} ({kind})" if code else text
    return f"{type(orig).__name__} {kind}".strip()  # asyncpg quotes arguments, PostgreSQL quotes rows


def unavailable(error: Exception) -> DatabaseUnavailable:
    """Make the error of a database that does not answer."""
    return DatabaseUnavailable(f"the database does not answer: {reason(error)}")


def damaged(error: Exception) -> DatabaseUnavailable:
    """Make the error of a database that is corrupt."""
    return DatabaseUnavailable(
        f"the database is damaged: {reason(error)}; docs/OPERATIONS.md says how to restore a backup"
    )


def _codes(error: Exception) -> tuple[int, str]:
    """Return SQLite's primary error code or 0, and PostgreSQL's SQLSTATE or an empty text."""
    orig = getattr(error, "orig", None)
    return getattr(orig, "sqlite_errorcode", 0) & 0xFF, getattr(orig, "sqlstate", None) or ""


def url_error(url: sa.URL, why: object, accepted: str) -> ConfigurationError:
    """Make the error that names the database's URL, without the password."""
    return ConfigurationError(f"the database URL is {redacted(url)}: {why}; accepted: {accepted}")


def missing(url: sa.URL) -> ConfigurationError:
    """Make the error of a database that is not to be made, and is not there."""
    return ConfigurationError(
        f"there is no database of this server at {redacted(url)}; accepted: the HIDREAM_HOME, or the "
        "HIDREAM_STORE_DATABASE_URL, that the server runs with, after its first start or `hidream keys create`"
    )


def in_use(url: sa.URL, by: str) -> InvalidInput:
    """Make the error of a database that must not be open in any other process."""
    return InvalidInput(
        f"{redacted(url)} is in use by {by}; accepted: a database that no other process has open. Stop all servers and "
        "workers first: what they write during or after a copy is not in it"
    )


def redacted(url: sa.URL) -> str:
    """Format a URL without its password."""
    return url.render_as_string(hide_password=True)
