"""Copying all rows of one database to another one, of either kind.

Both databases are open in this process alone. The target's rows are written, read again and compared with the source's
in one transaction. So the target has all rows or none, wherever the process dies, and running the copy again is safe.
The source is only read: even the migration of an older source is undone.

The tables, and their order, follow from `schema.METADATA`. Nothing is recomputed: ids, hashes of keys, virtual start
times and the outbox are copied as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.errors import ConfigurationError, InvalidInput
from hidream.store import postgresql, sqlite
from hidream.store.backend import is_transient, reason, redacted, unavailable
from hidream.store.database import parsed
from hidream.store.schema import METADATA

BATCH_ROWS = 500
DIGEST_BITS = 256

OnRows = Callable[[str, int, int], None]
"""Called with the name of a table, how many of its rows were copied, and how many it has."""


@dataclass(frozen=True, slots=True)
class Contents:
    """How many rows a table has, and a digest of them that does not depend on their order."""

    rows: int = 0
    digest: int = 0

    def with_row(self, row: Sequence[object]) -> Contents:
        """Add a row: digests of rows are added up."""
        text = json.dumps(row, sort_keys=True, default=lambda value: {"bytes": bytes(value).hex()})
        digest = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
        return Contents(self.rows + 1, (self.digest + digest) % 2**DIGEST_BITS)


async def copy_database(source_url: str, target_url: str, on_rows: OnRows, *, dry_run: bool = False) -> dict[str, int]:
    """Copy all rows to a database that is empty or does not exist, and verify them; return the rows of each table.

    If the target has the same rows already, nothing is written. `dry_run` only reads, and creates no target.

    Raises InvalidInput if another process has one of the two open, or if the target has other rows; ConfigurationError
    if a URL is not accepted, or the target does not take a row; and DatabaseUnavailable.
    """
    if parsed(source_url) == parsed(target_url):
        raise InvalidInput(f"FROM and TO are the same database, {redacted(parsed(source_url))}; accepted: two of them")
    try:
        async with _alone(source_url, make=False) as source:
            expected = {table.name: await _contents(source, table) for table in METADATA.sorted_tables}
            if not dry_run or _exists(target_url):
                async with _alone(target_url, make=True) as target:
                    await _fill(source, target, expected, target_url, on_rows, dry_run)
    except (sa.exc.DBAPIError, OSError) as error:
        if is_transient(error):
            raise unavailable(error) from error
        raise
    return {name: contents.rows for name, contents in expected.items()}


def _alone(url: str, *, make: bool) -> AbstractAsyncContextManager[AsyncConnection]:
    place = parsed(url)
    connect = sqlite.connect_alone if place.drivername == sqlite.DRIVER else postgresql.connect_alone
    return connect(place, make)


def _exists(url: str) -> bool:
    """Whether a database can be opened without creating a file."""
    place = parsed(url)
    return place.drivername != sqlite.DRIVER or sqlite.is_there(place)


async def _fill(
    source: AsyncConnection,
    target: AsyncConnection,
    expected: dict[str, Contents],
    target_url: str,
    on_rows: OnRows,
    dry_run: bool,
) -> None:
    """Copy, verify and commit, unless the target has these rows already."""
    before = {table.name: await _contents(target, table) for table in METADATA.sorted_tables}
    if before == expected:
        return
    if any(contents.rows for contents in before.values()):
        rows = ", ".join(f"{contents.rows} {name}" for name, contents in before.items() if contents.rows)
        raise InvalidInput(f"{redacted(parsed(target_url))} has {rows}; accepted: an empty database, or a new one")
    if dry_run:
        return
    for table in METADATA.sorted_tables:
        await _copy_table(source, target, table, expected[table.name].rows, on_rows)
    for table in METADATA.sorted_tables:
        found = await _contents(target, table)
        if found != expected[table.name]:
            raise ConfigurationError(
                f"{table.name}: the copy has {found.rows} rows, digest {found.digest:064x}; accepted: "
                f"{expected[table.name].rows} rows, digest {expected[table.name].digest:064x}. Nothing was committed"
            )
    await target.commit()


async def _copy_table(
    source: AsyncConnection, target: AsyncConnection, table: sa.Table, total: int, on_rows: OnRows
) -> None:
    keys = [column.key for column in table.columns]
    done = 0
    async for rows in _pages(source, table):
        try:
            await target.execute(sa.insert(table), [dict(zip(keys, row, strict=True)) for row in rows])
        except sa.exc.DBAPIError as error:
            if error.connection_invalidated:
                raise
            raise ConfigurationError(
                f"{table.name}: the target does not take one of the rows {done + 1} to {done + len(rows)}: "
                f"{reason(error)}. Nothing was committed"
            ) from error
        done += len(rows)
        on_rows(table.name, done, total)


async def _contents(connection: AsyncConnection, table: sa.Table) -> Contents:
    contents = Contents()
    async for rows in _pages(connection, table):
        for row in rows:
            contents = contents.with_row(row)
    return contents


async def _pages(connection: AsyncConnection, table: sa.Table) -> AsyncIterator[Sequence[list[Any]]]:
    """Read all rows, BATCH_ROWS at a time."""
    result = await connection.stream(sa.select(table))
    async for rows in result.partitions(BATCH_ROWS):
        yield [list(row) for row in rows]
