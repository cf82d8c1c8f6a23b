"""Looking at predictions, without changing what becomes of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.store.database import Database
from hidream.store.prediction import COLUMNS, Prediction
from hidream.store.schema import PREDICTIONS as P
from hidream.types import Status

RECENT_MS = 600_000
"""How far back one looks to tell how fast work is done."""

_FINAL = [status for status in Status if status.final]
_SHOWN = P.c.status != Status.DELETED


@dataclass(frozen=True, slots=True)
class Query:
    """Which predictions of a key are listed, the newest first; None is no condition. Times are ms, ends included."""

    page: int = 1
    page_size: int = 20
    created_after_ms: int | None = None
    created_before_ms: int | None = None
    model: str | None = None
    status: Status | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task stands: how many go before it, and in how many seconds it may be done; None if nobody can say."""

    before: int
    seconds: float | None


async def get(database: Database, prediction_id: str, key_id: str) -> Prediction | None:
    """Look up a prediction; None if there is none of this id, it was deleted, or it is another key's."""
    wanted = sa.select(*COLUMNS).where(P.c.id == prediction_id, P.c.key_id == key_id, _SHOWN)
    async with database.read() as connection:
        row = (await connection.execute(wanted)).first()
    return Prediction.of_row(row) if row else None


async def of_delivery(database: Database, prediction_id: str) -> Prediction | None:
    """Look up the prediction that a webhook is about, whosever it is; None if it was deleted."""
    async with database.read() as connection:
        row = (await connection.execute(sa.select(*COLUMNS).where(P.c.id == prediction_id, _SHOWN))).first()
    return Prediction.of_row(row) if row else None


async def ended(database: Database, prediction_ids: Collection[str]) -> dict[str, Prediction]:
    """Look up, by their ids, those of these tasks that have come to their end; also if they were deleted since."""
    wanted = sa.select(*COLUMNS).where(P.c.id.in_(prediction_ids), P.c.status.in_(_FINAL))
    async with database.read() as connection:
        return {row.id: Prediction.of_row(row) for row in (await connection.execute(wanted)).all()}


async def listed(database: Database, key_id: str, query: Query) -> tuple[int, list[Prediction]]:
    """List a page of a key's predictions, and count all that would be listed."""
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


@dataclass(frozen=True, slots=True)
class Line:
    """All tasks that wait for a model, by id: how many go before each, and how much work is done when it is done.

    `begun` is the work that is being drawn; `s_per_work` how long a piece of work took lately, None if nobody can say.
    """

    tasks: Mapping[str, tuple[int, int]]
    begun: int
    s_per_work: float | None

    def place(self, prediction_id: str) -> Place | None:
        """Say where a task stands; None if it did not wait."""
        found = self.tasks.get(prediction_id)
        return None if found is None else _place(found[0], found[1], self.begun, self.s_per_work)


async def place(database: Database, prediction: Prediction) -> Place:
    """Say where a task that waits stands, and when it may be done: by how fast work of its model was done lately."""
    earlier = sa.tuple_(P.c.turn, P.c.created_ms, P.c.id) < (prediction.turn, prediction.created_ms, prediction.id)
    before = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(P.c.work), 0)).where(
        P.c.status == Status.CREATED, P.c.model == prediction.model, earlier
    )
    async with database.read() as connection:
        count, ahead = (await connection.execute(before)).one()
        begun, s_per_work = await _pace(connection, prediction.model, database.now_ms())
    return _place(count, int(ahead) + prediction.work, begun, s_per_work)


async def line(database: Database, model: str) -> Line:
    """Look at all that wait for a model at once, which costs little more than `place` for one."""
    waiting = sa.select(P.c.id, P.c.work).where(P.c.status == Status.CREATED, P.c.model == model)
    tasks: dict[str, tuple[int, int]] = {}
    async with database.read() as connection:
        work = 0
        for id_, own in (await connection.execute(waiting.order_by(P.c.turn, P.c.created_ms, P.c.id))).all():
            work += own
            tasks[id_] = len(tasks), work
        begun, s_per_work = await _pace(connection, model, database.now_ms())
    return Line(tasks, begun, s_per_work)


async def _pace(connection: AsyncConnection, model: str, now: int) -> tuple[int, float | None]:
    """Say how much work of a model is being drawn, and how long a piece of it took lately."""
    drawing = sa.select(sa.func.coalesce(sa.func.sum(P.c.work), 0)).where(
        P.c.status == Status.PROCESSING, P.c.model == model
    )
    lately = sa.select(sa.func.sum(P.c.work), sa.func.min(P.c.started_ms), sa.func.max(P.c.finished_ms)).where(
        P.c.finished_ms >= now - RECENT_MS, P.c.status == Status.COMPLETED, P.c.model == model
    )
    begun = (await connection.execute(drawing)).scalar_one()
    done, first_ms, last_ms = (await connection.execute(lately)).one()
    unknown = not done or last_ms <= first_ms
    return int(begun), None if unknown else (last_ms - first_ms) / 1000 / int(done)


def _place(before: int, work: int, begun: int, s_per_work: float | None) -> Place:
    return Place(before, None if s_per_work is None else round((work + begun / 2) * s_per_work, 1))
