"""What the two kinds of database share: what `database.py` knows of them, and how tables are brought up to date."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from hidream.errors import ConfigurationError
from hidream.store.changes import Changes


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
    """Say by ConfigurationError what is wrong with a database that cannot be opened or migrated."""
    from alembic.util import CommandError

    try:
        yield
    except sa.exc.DBAPIError as error:
        raise refused(url, error.orig, accepted) from error
    except (CommandError, OSError) as error:  # the first names a step that is not known here
        raise refused(url, error, accepted) from error


def refused(url: sa.URL, why: object, accepted: str) -> ConfigurationError:
    """Make the error that names a database's URL, without its password."""
    return ConfigurationError(f"the database URL is {shown(url)}: {why}; accepted: {accepted}")


def shown(url: sa.URL) -> str:
    """Write a URL without its password."""
    return url.render_as_string(hide_password=True)
