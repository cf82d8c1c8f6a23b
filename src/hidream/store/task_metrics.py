"""Metrics of tasks: how many are unfinished, and which have finished since the last scrape.

Metrics contain no key, no prompt and nothing else that a client chose: tasks are grouped by model, status, code and
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
"""How long after its `finished_ms` a task may become visible: because of a slow commit, or another machine's clock."""

_UNFINISHED = [status for status in Status if not status.final]
_SMALL, _MEDIUM = 512**2, 1024**2
_FINAL = [status for status in Status if status.final]


class SizeClass(StrEnum):
    """A task's size by the total pixels of its images: up to 512², up to 1024², or larger."""

    SMALL = "512"
    MEDIUM = "1024"
    LARGE = "larger"

    @classmethod
    def of(cls, pixels: int) -> SizeClass:
        """Return the class of a task."""
        return cls.SMALL if pixels <= _SMALL else cls.MEDIUM if pixels <= _MEDIUM else cls.LARGE


@dataclass(frozen=True, slots=True)
class UnfinishedCount:
    """The number of tasks of a model, status and size class; the oldest was submitted at `oldest_ms`."""

    model: str
    status: Status
    size: SizeClass
    count: int
    oldest_ms: int


@dataclass(frozen=True, slots=True)
class FinishedTask:
    """How a task finished; `waited_ms` is None if it was never started, `steps` counts those of all its images."""

    model: str
    status: Status
    code: int
    size: SizeClass
    waited_ms: int | None
    inference_ms: int
    total_ms: int
    steps: int


async def unfinished(database: Database) -> list[UnfinishedCount]:
    """Count the tasks that wait or are being processed."""
    small, medium, large = (kind.value for kind in SizeClass)
    size = sa.case((P.c.pixels <= _SMALL, small), (P.c.pixels <= _MEDIUM, medium), else_=large).label("size")
    grouped = sa.select(P.c.model, P.c.status, size, P.c.created_ms).where(P.c.status.in_(_UNFINISHED)).subquery()
    kind = grouped.c.model, grouped.c.status, grouped.c.size
    wanted = sa.select(*kind, sa.func.count(), sa.func.min(grouped.c.created_ms)).group_by(*kind)
    async with database.read() as connection:
        rows = (await connection.execute(wanted)).all()
    return [UnfinishedCount(model, Status(status), SizeClass(size), *counted) for model, status, size, *counted in rows]


async def pending_webhooks(database: Database) -> int:
    """Count the deliveries that are neither delivered nor given up."""
    wanted = sa.select(sa.func.count()).select_from(D).where(D.c.state == DeliveryState.WAITING)
    async with database.read() as connection:
        return int((await connection.execute(wanted)).scalar_one())


class FinishedFeed:
    """Reports each finished task once, beginning with those that finish after this was created."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._since = self._created = database.now_ms()
        self._reported: dict[str, int] = {}  # reported lately: id and finish time

    async def read(self) -> list[FinishedTask]:
        """Return the tasks that have finished and were not reported yet."""
        now = self._database.now_ms()
        after = max(self._since - VISIBILITY_LAG_MS, self._created)
        wanted = sa.select(*_COLUMNS).where(P.c.status.in_(_FINAL), P.c.finished_ms >= after)
        async with self._database.read() as connection:
            rows = (await connection.execute(wanted)).all()
        new = [row for row in rows if row.id not in self._reported]
        self._reported = {id_: ms for id_, ms in self._reported.items() if ms >= now - 2 * VISIBILITY_LAG_MS}
        self._reported |= {row.id: row.finished_ms for row in new}
        self._since = now
        return [_finished(row) for row in new]


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


def _finished(row: Any) -> FinishedTask:  # noqa: ANN401 - a row of _COLUMNS
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
    """Return how a task finished, even if deleted since: only completed tasks have flags, only failed ones a code."""
    if status is not Status.DELETED:
        return status
    return Status.COMPLETED if nsfw else Status.FAILED if code else Status.CANCELLED
