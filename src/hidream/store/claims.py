"""Claiming: which tasks a worker gets, and when.

The task with the smallest virtual start time (`admission`) is claimed first. If it does not fit into a worker's
`Capacity`, it stays at the head of the queue and nothing overtakes it, so that no task starves. Meanwhile a huge task
may occupy the capacity for minutes. So a worker also has a `ReserveCapacity` for keys that have no task there
(`claim_reserve`): one task per key, which takes at most half of the work that is left, so that a smaller one always
fits. Reserve tasks do not count towards the capacity and do not advance the virtual time, so a task that was passed
over is not delayed.

A *quarantined* task (`predictions`) is claimed alone, by a worker that has no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.store.database import Database
from hidream.store.prediction import COLUMNS, Prediction
from hidream.store.predictions import STATUS_OF_ROW, transition, waits_for
from hidream.store.schema import PREDICTIONS as P
from hidream.store.schema import VIRTUAL_STARTS
from hidream.types import Mode, Status

VIRTUAL_TIME = ""
"""The key id under which VIRTUAL_STARTS holds the system's virtual time."""
LOOK_AHEAD = 1000
"""How many tasks at the head of the queue are considered for a reserve: reading the index takes a millisecond. A key
without tasks waits behind at most one task of each other key, so only as many keys could hide it; of a key of higher
priority, it waits behind as many as fit into its head start."""
_QUEUE_ORDER = (P.c.virtual_start, P.c.created_ms, P.c.id)
"""The order of the queue."""
_CLAIMED = (P.c.id, P.c.model, P.c.input, P.c.virtual_start, P.c.work, P.c.workers_lost)
"""The columns that are read before a row is claimed."""
Versions = Mapping[str, Mapping[Mode, str]]
"""The version of each model in each mode."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """A worker's free capacity: the number of tasks, and their total work in pixel steps.

    A worker without tasks may claim one task of any size.

    `has_tasks`: whether tasks occupy its capacity; `reserved`: whether tasks occupy its reserve.
    """

    tasks: int
    work: int
    has_tasks: bool
    reserved: bool = False


@dataclass(frozen=True, slots=True)
class ReserveCapacity:
    """A worker's free reserve: the number of tasks, their total work in pixel steps, and the keys excluded from it."""

    tasks: int
    work: int
    excluded_keys: frozenset[str]


async def claim(
    database: Database, models: Sequence[str], worker_id: str, versions: Versions, lease_s: float, capacity: Capacity
) -> list[Prediction]:
    """Claim the first tasks in the queue that wait for one of `models`, for `lease_s` seconds.

    The rows record which of `versions` generates them. A quarantined task is claimed alone, by a worker that has no
    other. No task overtakes it, so it does not starve.
    """
    first = (
        sa.select(*_CLAIMED)
        .where(*waits_for(models))
        .order_by(*_QUEUE_ORDER)
        .limit(capacity.tasks)
        .with_for_update(skip_locked=True)
    )
    async with database.read() as connection:  # usually there are none, and a write would be wasted
        line = (
            sa.select(P.c.work, P.c.workers_lost)
            .where(*waits_for(models))
            .order_by(*_QUEUE_ORDER)
            .limit(capacity.tasks)
        )
        if not fitting((await connection.execute(line)).all(), capacity):
            return []
    async with database.write() as connection:
        chosen = fitting((await connection.execute(first)).all(), capacity)
        if not chosen:
            return []
        tasks = await _claim_rows(connection, chosen, worker_id, versions, database.now_ms(), lease_s)
        served = max(row.virtual_start for row in chosen)
        serving = (
            sa.update(VIRTUAL_STARTS)
            .where(VIRTUAL_STARTS.c.key_id == VIRTUAL_TIME, VIRTUAL_STARTS.c.next < served)
            .values(next=served)
        )
        await connection.execute(serving)
    return tasks


async def claim_reserve(
    database: Database,
    models: Sequence[str],
    worker_id: str,
    versions: Versions,
    lease_s: float,
    reserve: ReserveCapacity,
) -> list[Prediction]:
    """Claim tasks that fit into a reserve, out of the order of the queue; otherwise like `claim`.

    Only for a worker with tasks in its capacity and no quarantined task. Quarantined tasks are skipped.
    """
    ahead = sa.select(*_QUEUE_ORDER, P.c.key_id, P.c.work).where(*waits_for(models)).order_by(*_QUEUE_ORDER)
    line = ahead.limit(LOOK_AHEAD).subquery()  # the index covers all of it
    wanted = (
        sa.select(line.c.id, line.c.key_id, line.c.work)
        .join(P, P.c.id == line.c.id)
        .where(line.c.work <= reserve.work // 2, line.c.key_id.not_in(reserve.excluded_keys), P.c.workers_lost == 0)
        .order_by(line.c.virtual_start, line.c.created_ms, line.c.id)
    )
    async with database.read() as connection:
        ids = for_reserve((await connection.execute(wanted)).all(), reserve)
    if not ids:
        return []
    still = sa.select(*_CLAIMED).where(P.c.id.in_(ids), STATUS_OF_ROW == Status.CREATED, P.c.workers_lost == 0)
    async with database.write() as connection:
        chosen = (await connection.execute(still.with_for_update(skip_locked=True))).all()
        if not chosen:
            return []
        return await _claim_rows(connection, chosen, worker_id, versions, database.now_ms(), lease_s)


def fitting(waiting: Sequence[Any], capacity: Capacity) -> Sequence[Any]:
    """Return the tasks at the head of the queue that fit."""
    if waiting and waiting[0].workers_lost:
        return [] if capacity.has_tasks or capacity.reserved else waiting[:1]
    count, work = 0, 0
    for row in waiting:
        work += row.work
        if row.workers_lost or (work > capacity.work and (count or capacity.has_tasks)):
            break
        count += 1
    return waiting[:count]


def for_reserve(waiting: Sequence[Any], reserve: ReserveCapacity) -> list[str]:
    """Choose one task per key that takes at most half of the work that is left."""
    ids: list[str] = []
    keys, left = set(reserve.excluded_keys), reserve.work
    for row in waiting:
        if len(ids) < reserve.tasks and row.key_id not in keys and 2 * row.work <= left:
            ids.append(row.id)
            keys.add(row.key_id)
            left -= row.work
    return ids


async def _claim_rows(
    connection: AsyncConnection,
    chosen: Sequence[Any],
    worker_id: str,
    versions: Versions,
    now: int,
    lease_s: float,
) -> list[Prediction]:
    """Assign waiting rows, which are locked, to a worker."""
    statement = (
        transition("claim")
        .where(P.c.id.in_([row.id for row in chosen]))
        .values(
            attempt=P.c.attempt + 1,
            version=sa.case({row.id: _version(versions, row) for row in chosen}, value=P.c.id),
            started_ms=now,
            step=0,
            worker_id=worker_id,
            lease_until_ms=now + round(lease_s * 1000),
        )
        .returning(*COLUMNS)
    )
    rows = (await connection.execute(statement)).all()
    return sorted(
        (Prediction.of_row(row) for row in rows), key=lambda task: (task.virtual_start, task.created_ms, task.id)
    )


def _version(versions: Versions, row: sa.Row[Any]) -> str:
    # Not in SQL: to find the mode, PostgreSQL would parse the whole JSON, and fail at a zero byte in a prompt.
    modes = versions[row.model]
    return modes.get(row.input.get("mode", Mode.EXACT), modes[Mode.EXACT])
