"""Retention: old predictions are deleted; then their files are removed, and after those their rows.

In this order, a crash in between leaves no file without a row: the next run finds the row and removes its files again.
A row stays for at least a day, without the name of its files, because it counts towards the limits of its key and its
Idempotency-Key is still valid.

An upload is withdrawn before its file is removed, so that no new task can refer to it. An upload that no task has used
is removed sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.store.database import Database
from hidream.store.prediction import COLUMNS, Prediction
from hidream.store.predictions import TRANSITIONS
from hidream.store.schema import DAY_MS, IDEMPOTENCY_RECORDS, UPLOADS
from hidream.store.schema import PREDICTIONS as P
from hidream.store.uploads import WITHDRAWN
from hidream.types import Status

BATCH_ROWS = 500
"""Rows that one transaction changes: more would block submissions for too long."""


_DELETED: sa.ColumnClause[str] = sa.literal_column(f"'{Status.DELETED}'")
_NO_NAME: sa.ColumnClause[str] = sa.literal_column("''")
"""Literals, as in the conditions of the partial indexes: with parameters, the indexes would not be used."""


@dataclass(frozen=True, slots=True)
class Purgeable:
    """What can be removed: the files of predictions, then their rows; and uploads."""

    predictions: Sequence[Prediction]
    uploads: Sequence[str]

    @property
    def output_names(self) -> list[str]:
        """Names of the predictions' files."""
        return [name for prediction in self.predictions if prediction.output_name for name in prediction.output_names]


async def expire(database: Database, older_than_ms: int) -> int:
    """Mark a batch of finished predictions that were created before a time as deleted; return how many."""
    sources, target = TRANSITIONS["delete"]
    old = sa.select(P.c.id).where(P.c.status.in_(sources), P.c.created_ms < older_than_ms).limit(BATCH_ROWS)
    async with database.read() as connection:
        ids = (await connection.scalars(old)).all()
    if not ids:
        return 0
    statement = sa.update(P).where(P.c.id.in_(ids), P.c.status.in_(sources)).values(status=target)
    async with database.write() as connection:
        return (await connection.execute(statement)).rowcount


async def purgeable(database: Database, uploads_older_than_ms: int, unused_older_than_ms: int = 0) -> Purgeable:
    """Return a batch of what can be removed: deleted predictions, and old uploads.

    An upload is old if it was last used before the first time, or was created before the second and never used.
    Uploads of unfinished tasks are not included.
    """
    deleted = sa.select(*COLUMNS).where(P.c.status == _DELETED)
    with_files = deleted.where(P.c.output_name != _NO_NAME).limit(BATCH_ROWS)
    old = deleted.where(P.c.output_name == _NO_NAME, P.c.created_ms <= database.now_ms() - DAY_MS).limit(BATCH_ROWS)
    async with database.read() as connection:
        rows = [*await connection.execute(with_files)] or [*await connection.execute(old)]
    names = await _withdrawn(database, uploads_older_than_ms, unused_older_than_ms)
    return Purgeable([Prediction.of_row(row) for row in rows], names)


async def _withdrawn(database: Database, older_than_ms: int, unused_older_than_ms: int) -> Sequence[str]:
    """Withdraw a batch of old uploads; return their names, and those of uploads that were withdrawn before."""
    old = sa.func.coalesce(UPLOADS.c.used_ms, UPLOADS.c.created_ms) < older_than_ms
    unused = sa.and_(UPLOADS.c.used_ms.is_(None), UPLOADS.c.created_ms < unused_older_than_ms)
    candidate = UPLOADS.c.created_ms < max(older_than_ms, unused_older_than_ms)  # the condition that the index serves
    due = sa.and_(candidate, sa.or_(old, unused, UPLOADS.c.media_type == WITHDRAWN))
    async with database.read() as connection:
        found = (await connection.scalars(sa.select(UPLOADS.c.name).where(due).limit(BATCH_ROWS))).all()
        needed = await _needed(connection) if found else set()
    free = [name for name in found if name not in needed]
    if not free:
        return []
    withdraw = sa.update(UPLOADS).where(UPLOADS.c.name.in_(free), due).values(media_type=WITHDRAWN)
    async with database.write(quiet=True) as connection:
        return (await connection.scalars(withdraw.returning(UPLOADS.c.name))).all()


async def _needed(connection: AsyncConnection) -> set[str]:
    """Return the names of the uploads of unfinished tasks."""
    unfinished = [status for status in Status if not status.final and status is not Status.DELETED]
    inputs = await connection.scalars(sa.select(P.c.input).where(P.c.status.in_(unfinished)))
    return {name for each in inputs for name in (each.get("image"), each.get("mask")) if name}


async def unreferenced(database: Database, names: Sequence[str], first_of: Callable[[str], str]) -> list[str]:
    """Return those of these files that no row refers to.

    `first_of` maps a file name to the `output_name` of its task, which stands for all files of the task.
    """
    predictions = sa.select(P.c.output_name).where(P.c.output_name.in_({first_of(n) for n in names}))
    uploads = sa.select(UPLOADS.c.name).where(UPLOADS.c.name.in_(names))
    async with database.read() as connection:
        known = {*await connection.scalars(predictions), *await connection.scalars(uploads)}
    return [name for name in names if name not in known and first_of(name) not in known]


async def purge(database: Database, purgeable: Purgeable) -> None:
    """Remove rows whose files are gone; of predictions younger than a day, clear only the name of the files."""
    before = database.now_ms() - DAY_MS
    old = [prediction.id for prediction in purgeable.predictions if prediction.created_ms <= before]
    younger = [prediction.id for prediction in purgeable.predictions if prediction.created_ms > before]
    async with database.write(quiet=True) as connection:
        await connection.execute(sa.delete(IDEMPOTENCY_RECORDS).where(IDEMPOTENCY_RECORDS.c.prediction_id.in_(old)))
        await connection.execute(sa.delete(P).where(P.c.id.in_(old), P.c.status == Status.DELETED))
        await connection.execute(sa.update(P).where(P.c.id.in_(younger)).values(output_name=""))
        await connection.execute(sa.delete(UPLOADS).where(UPLOADS.c.name.in_(purgeable.uploads)))
