"""Figures for those who watch over the service: what waits, and what has come to its end since they last asked.

No figure names a key, a prompt or anything else that a client chose: tasks are told apart by model, state, code and
size class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from hidream.store.database import Database
from hidream.store.outbox import DeliveryState
from hidream.store.schema import DELIVERIES as D
from hidream.store.schema import PREDICTIONS as P
from hidream.types import Status

VISIBILITY_LAG_MS = 60_000
"""How much later than its `finished_ms` an end may become visible: a long commit, another machine's clock."""

_UNFINISHED = [status for status in Status if not status.final]
_SMALL, _MEDIUM = 512**2, 1024**2
_FINAL = [status for status in Status if status.final]


class SizeClass(StrEnum):
    """How large a task is, by the pixels of its pictures together: up to one of 512², up to one of 1024², or larger."""

    SMALL = "512"
    MEDIUM = "1024"
    LARGE = "larger"

    @classmethod
    def of(cls, pixels: int) -> SizeClass:
        """Tell the class of a task."""
        return cls.SMALL if pixels <= _SMALL else cls.MEDIUM if pixels <= _MEDIUM else cls.LARGE


@dataclass(frozen=True, slots=True)
class UnfinishedCount:
    """So many tasks of a model, state and size class, the oldest of which was submitted at `oldest_ms`."""

    model: str
    status: Status
    size: SizeClass
    count: int
    oldest_ms: int


@dataclass(frozen=True, slots=True)
class FinishedTask:
    """How a task ended; `waited_ms` is None for one that was never begun, `steps` are those of all its pictures."""

    model: str
    status: Status
    code: int
    size: SizeClass
    waited_ms: int | None
    inference_ms: int
    total_ms: int
    steps: int


async def unfinished(database: Database) -> list[UnfinishedCount]:
    """Count what waits and what is being drawn."""
    small, medium, large = (kind.value for kind in SizeClass)
    size = sa.case((P.c.pixels <= _SMALL, small), (P.c.pixels <= _MEDIUM, medium), else_=large).label("size")
    grouped = sa.select(P.c.model, P.c.status, size, P.c.created_ms).where(P.c.status.in_(_UNFINISHED)).subquery()
    kind = grouped.c.model, grouped.c.status, grouped.c.size
    wanted = sa.select(*kind, sa.func.count(), sa.func.min(grouped.c.created_ms)).group_by(*kind)
    async with database.read() as connection:
        rows = (await connection.execute(wanted)).all()
    return [UnfinishedCount(model, Status(status), SizeClass(size), *counted) for model, status, size, *counted in rows]


async def pending_webhooks(database: Database) -> int:
    """Count the deliveries that are neither done nor given up."""
    wanted = sa.select(sa.func.count()).select_from(D).where(D.c.state == DeliveryState.WAITING)
    async with database.read() as connection:
        return int((await connection.execute(wanted)).scalar_one())


class FinishedFeed:
    """Tells of every end once, from the moment this was made."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._since = self._begun = database.now_ms()
        self._told: dict[str, int] = {}  # ids of the last minutes, with the time of their end

    async def new(self) -> list[FinishedTask]:
        """Tell of the ends that were not told of before."""
        now = self._database.now_ms()
        after = max(self._since - VISIBILITY_LAG_MS, self._begun)
        wanted = sa.select(*_COLUMNS).where(P.c.status.in_(_FINAL), P.c.finished_ms >= after)
        async with self._database.read() as connection:
            rows = (await connection.execute(wanted)).all()
        new = [row for row in rows if row.id not in self._told]
        self._told = {id_: ms for id_, ms in self._told.items() if ms >= now - 2 * VISIBILITY_LAG_MS}
        self._told |= {row.id: row.finished_ms for row in new}
        self._since = now
        return [_end(row) for row in new]


_COLUMNS = (
    P.c.id,
    P.c.model,
    P.c.status,
    P.c.code,
    P.c.nsfw,
    P.c.created_ms,
    P.c.started_ms,
    P.c.finished_ms,
    P.c.inference_ms,
    P.c.steps,
    P.c.pixels,
)


def _end(row: Any) -> FinishedTask:  # noqa: ANN401 - a row of _COLUMNS
    return FinishedTask(
        model=row.model,
        status=_before_deletion(Status(row.status), row.code, row.nsfw),
        code=row.code,
        size=SizeClass.of(row.pixels),
        waited_ms=None if row.started_ms is None else row.started_ms - row.created_ms,
        inference_ms=row.inference_ms,
        total_ms=row.finished_ms - row.created_ms,
        steps=row.steps * len(row.nsfw),
    )


def _before_deletion(status: Status, code: int, nsfw: Sequence[bool]) -> Status:
    """Tell how a task ended that has been deleted since: only pictures have flags, only failures a code."""
    if status is not Status.DELETED:
        return status
    return Status.COMPLETED if nsfw else Status.FAILED if code else Status.CANCELLED
