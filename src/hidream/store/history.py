"""Queries about predictions and the queue; they change nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.store.database import Database
from hidream.store.prediction import COLUMNS, Prediction
from hidream.store.schema import PREDICTIONS as P
from hidream.types import Status

RECENT_MS = 600_000
"""The period over which the speed of the workers is measured."""

_FINAL = [status for status in Status if status.final]
_SHOWN = P.c.status != Status.DELETED


@dataclass(frozen=True, slots=True)
class Query:
    """Which predictions of a key to list, newest first; None is no condition. Times are in ms, and inclusive."""

    page: int = 1
    page_size: int = 20
    created_after_ms: int | None = None
    created_before_ms: int | None = None
    model: str | None = None
    status: Status | None = None


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """A task's position: how many tasks are before it, and in how many seconds it may be done, None if unknown."""

    before: int
    seconds: float | None


async def get(database: Database, prediction_id: str, key_id: str) -> Prediction | None:
    """Return a prediction of a key; None if this id is unknown, deleted, or another key's."""
    wanted = sa.select(*COLUMNS).where(P.c.id == prediction_id, P.c.key_id == key_id, _SHOWN)
    async with database.read() as connection:
        row = (await connection.execute(wanted)).first()
    return Prediction.of_row(row) if row else None


async def get_for_webhook(database: Database, prediction_id: str) -> Prediction | None:
    """Return the prediction of a webhook, whichever key it belongs to; None if it was deleted."""
    async with database.read() as connection:
        row = (await connection.execute(sa.select(*COLUMNS).where(P.c.id == prediction_id, _SHOWN))).first()
    return Prediction.of_row(row) if row else None


async def finished(database: Database, prediction_ids: Collection[str]) -> dict[str, Prediction]:
    """Return those of these tasks that are finished, by id, including tasks that were deleted since."""
    wanted = sa.select(*COLUMNS).where(P.c.id.in_(prediction_ids), P.c.status.in_(_FINAL))
    async with database.read() as connection:
        return {row.id: Prediction.of_row(row) for row in (await connection.execute(wanted)).all()}


async def list_predictions(database: Database, key_id: str, query: Query) -> tuple[int, list[Prediction]]:
    """Return the number of a key's predictions that match, and one page of them."""
    conditions = [P.c.key_id == key_id, _SHOWN]
    if query.created_after_ms is not None:
        conditions.append(P.c.created_ms >= query.created_after_ms)
    if query.created_before_ms is not None:
        conditions.append(P.c.created_ms <= query.created_before_ms)
    if query.model is not None:
        conditions.append(P.c.model == query.model)
    if query.status is not None:
        conditions.append(P.c.status == query.status)
    count = sa.select(sa.func.count()).select_from(P).where(*conditions)
    page = (
        sa.select(*COLUMNS)
        .where(*conditions)
        .order_by(P.c.created_ms.desc(), P.c.id.desc())
        .limit(query.page_size)
        .offset((query.page - 1) * query.page_size)
    )
    async with database.read() as connection:
        total = (await connection.execute(count)).scalar_one()
        rows = (await connection.execute(page)).all()
    return total, [Prediction.of_row(row) for row in rows]


QueueOrder = tuple[int, int, str]
"""The queue is sorted by virtual start time, time of submission in ms, and id."""


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """All tasks that wait for a model, in the order of the queue; `work[i]` is the total work of the first `i`.

    `begun` is the work of the tasks in progress. `s_per_work` is the recent time per unit of work, None if unknown.
    `newcomers` are later tasks with their work; only those whose position was requested are known.
    """

    order: Sequence[QueueOrder]
    work: Sequence[int]
    begun: int
    s_per_work: float | None
    newcomers: list[tuple[QueueOrder, int]] = field(default_factory=list)

    def place(self, prediction: Prediction) -> QueuePosition:
        """Return the position of a waiting task; one that is not in the snapshot is added."""
        order = prediction.virtual_start, prediction.created_ms, prediction.id
        at = bisect_left(self.order, order)
        if at == len(self.order) or self.order[at] != order:
            newcomer = order, prediction.work
            index = bisect_left(self.newcomers, newcomer)
            if self.newcomers[index : index + 1] != [newcomer]:
                self.newcomers.insert(index, newcomer)
        newcomers = self.newcomers[: bisect_left(self.newcomers, (order, 0))]
        before = at + len(newcomers)
        if self.s_per_work is None:
            return QueuePosition(before, None)
        work = self.work[at] + sum(work for _, work in newcomers) + prediction.work
        return QueuePosition(before, round((work + self.begun / 2) * self.s_per_work, 1))


async def queue_snapshot(database: Database, model: str) -> QueueSnapshot:
    """Read the tasks that wait for a model, and the recent speed of its workers."""
    waiting = sa.select(P.c.virtual_start, P.c.created_ms, P.c.id, P.c.work)
    waiting = waiting.where(P.c.status == Status.CREATED, P.c.model == model)
    async with database.read() as connection:
        rows = (await connection.execute(waiting.order_by(P.c.virtual_start, P.c.created_ms, P.c.id))).all()
        begun, s_per_work = await _pace(connection, model, database.now_ms())
    work = [0, *accumulate(row.work for row in rows)]
    return QueueSnapshot([(row.virtual_start, row.created_ms, row.id) for row in rows], work, begun, s_per_work)


async def _pace(connection: AsyncConnection, model: str, now: int) -> tuple[int, float | None]:
    """Return a model's work in progress, and the recent seconds per unit of its work, None if unknown."""
    in_progress = sa.select(sa.func.coalesce(sa.func.sum(P.c.work), 0)).where(
        P.c.status == Status.PROCESSING, P.c.model == model
    )
    recent = sa.select(sa.func.sum(P.c.work), sa.func.min(P.c.started_ms), sa.func.max(P.c.finished_ms)).where(
        P.c.finished_ms >= now - RECENT_MS, P.c.status == Status.COMPLETED, P.c.model == model
    )
    begun = (await connection.execute(in_progress)).scalar_one()
    done, first_ms, last_ms = (await connection.execute(recent)).one()
    unknown = not done or last_ms <= first_ms
    return int(begun), None if unknown else (last_ms - first_ms) / 1000 / int(done)
