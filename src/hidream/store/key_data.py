"""All data of one key: reading it page by page, and erasing it.

Erasing works as in `retention.py`: first the files, then the rows that name them. So a crash in between leaves no file
without a row, and the erasure can be repeated. The key's own row stays, revoked and without the user's data, for two
reasons: an erased secret must not be registered again, and the audit log refers to the key's id.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hidream.store import audit_log, keys
from hidream.store.database import Database
from hidream.store.prediction import COLUMNS, Prediction
from hidream.store.retention import Purgeable
from hidream.store.schema import AUDIT_LOG, DELIVERIES, IDEMPOTENCY_RECORDS, KEYS, PREVIEWS, UPLOADS, VIRTUAL_STARTS
from hidream.store.schema import PREDICTIONS as P
from hidream.types import Status

PAGE = 100
"""Rows in memory at a time: a prompt has up to 10,000 characters, and a preview some kilobytes."""
BATCH_ROWS = 500
"""Rows that one transaction removes: more would block submissions for too long."""
ERASING_MS, WATCHED_MS = 3_600_000, 7 * 86_400_000
"""How long an erasure may take before another process continues it, and how long data that arrive late are erased."""
SECRETS = frozenset(("hash", "pepper_check", "webhook_secret", "webhook_secret_before", "webhook_secret_until_ms"))
"""Columns of a key's row that are not data of its user."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class KeyTable:
    """A table with data of keys: the columns that sort and identify its rows, and the column that names the owner.

    The owner of deliveries and previews is their prediction.
    """

    table: sa.Table
    order: tuple[str, ...]
    owner: str = "key_id"

    def mine(self, key_id: str) -> sa.ColumnElement[bool]:
        """Whether a row is this key's."""
        if self.owner == "prediction_id":
            return sa.exists().where(P.c.id == self.table.c.prediction_id, P.c.key_id == key_id)
        return self.table.c[self.owner] == key_id


KEY_TABLES: Mapping[str, KeyTable] = {
    "predictions": KeyTable(P, ("created_ms", "id")),
    "deliveries": KeyTable(DELIVERIES, ("prediction_id", "created_ms", "id"), "prediction_id"),
    "previews": KeyTable(PREVIEWS, ("prediction_id",), "prediction_id"),
    "idempotency_keys": KeyTable(IDEMPOTENCY_RECORDS, ("idempotency_key",)),
    "uploads": KeyTable(UPLOADS, ("created_ms", "name")),
    "acts": KeyTable(AUDIT_LOG, ("at_ms", "id"), "subject"),
}


async def key_row(database: Database, key_id: str) -> Row:
    """Read a key's own row without its secrets, and its virtual start time in the queue. Raises NotFound."""
    wanted = sa.select(
        *(column for column in KEYS.c if column.name not in SECRETS), VIRTUAL_STARTS.c.next.label("turn")
    )
    joined = wanted.select_from(sa.outerjoin(KEYS, VIRTUAL_STARTS, KEYS.c.id == VIRTUAL_STARTS.c.key_id))
    async with database.read() as connection:
        row = (await connection.execute(joined.where(KEYS.c.id == key_id))).first()
    if row is None:
        raise keys.unknown_key(key_id)
    return row._asdict()


async def pages(database: Database, kind: KeyTable, key_id: str) -> AsyncIterator[Sequence[Row]]:
    """Iterate over the rows of a key in a table; rows that are written meanwhile may be included."""
    order = [kind.table.c[name] for name in kind.order]
    first = sa.select(kind.table).where(kind.mine(key_id)).order_by(*order).limit(PAGE)
    wanted = first
    while True:
        async with database.read() as connection:
            rows = [row._asdict() for row in await connection.execute(wanted)]
        if not rows:
            return
        yield rows
        wanted = first.where(sa.tuple_(*order) > tuple(rows[-1][name] for name in kind.order))


async def begin_erasure(database: Database, key_id: str, actor: str) -> None:
    """Revoke a key that is to be erased, and record the actor in the audit log. Raises NotFound."""
    now = database.now_ms()
    mine = sa.update(KEYS).where(KEYS.c.id == key_id)
    async with database.write() as connection:
        revoked = await connection.execute(mine.values(revoked_ms=sa.func.coalesce(KEYS.c.revoked_ms, now)))
        if revoked.rowcount == 0:
            raise keys.unknown_key(key_id)
        await audit_log.record(connection, now, actor, "keys erase", key_id)


async def unfinished_erasures(database: Database) -> Sequence[str]:
    """Keys with a recent erasure that still have data: it was interrupted, or data arrived late."""
    now = database.now_ms()
    begun = (
        AUDIT_LOG.c.act == "keys erase",
        AUDIT_LOG.c.at_ms > now - WATCHED_MS,
        AUDIT_LOG.c.at_ms < now - ERASING_MS,
    )
    left = [sa.exists().where(table.c.key_id == AUDIT_LOG.c.subject) for table in (P, UPLOADS)]
    async with database.read() as connection:
        return (await connection.scalars(sa.select(AUDIT_LOG.c.subject).where(*begun, sa.or_(*left)).distinct())).all()


async def unfinished(database: Database, key_id: str) -> Sequence[str]:
    """Ids of a batch of a key's unfinished tasks."""
    wanted = sa.select(P.c.id).where(P.c.key_id == key_id, P.c.status.in_([s for s in Status if not s.final]))
    async with database.read() as connection:
        return (await connection.scalars(wanted.limit(BATCH_ROWS))).all()


async def purgeable(database: Database, key_id: str) -> Purgeable:
    """Return a batch of a key's finished tasks and uploads."""
    finished = P.c.status.in_([*(status for status in Status if status.final), Status.DELETED])
    mine = sa.select(*COLUMNS).where(P.c.key_id == key_id, finished).limit(PAGE)
    names = sa.select(UPLOADS.c.name).where(UPLOADS.c.key_id == key_id).limit(BATCH_ROWS)
    async with database.read() as connection:
        rows = (await connection.execute(mine)).all()
        return Purgeable([Prediction.of_row(row) for row in rows], (await connection.scalars(names)).all())


async def purge(database: Database, found: Purgeable) -> None:
    """Remove rows whose files are gone, and the rows that refer to them; of tasks only those that are deleted."""
    ids = [prediction.id for prediction in found.predictions]
    async with database.write(quiet=True) as connection:
        await connection.execute(sa.delete(IDEMPOTENCY_RECORDS).where(IDEMPOTENCY_RECORDS.c.prediction_id.in_(ids)))
        await connection.execute(sa.delete(P).where(P.c.id.in_(ids), P.c.status == Status.DELETED))
        await connection.execute(sa.delete(UPLOADS).where(UPLOADS.c.name.in_(found.uploads)))


async def end_erasure(database: Database, key_id: str, actor: str, **counts: int) -> None:
    """Clear the user's data in the key's own row, and record in the audit log that the key is erased."""
    cleared = {"name": "", "webhook_secret": "", "webhook_secret_before": "", "webhook_secret_until_ms": 0}
    async with database.write(quiet=True) as connection:
        for table in (IDEMPOTENCY_RECORDS, VIRTUAL_STARTS):
            await connection.execute(sa.delete(table).where(table.c.key_id == key_id))
        await connection.execute(sa.update(KEYS).where(KEYS.c.id == key_id).values(cleared))
        await audit_log.record(connection, database.now_ms(), actor, "keys erased", key_id, **counts)
