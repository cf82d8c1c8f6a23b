"""Predictions: the states that a task goes through, and the queue that they are.

                        claim                complete
    (intake) ► created ────────► processing ──────────► completed ─┐
       │         │  ▲              │  │  ▲ │                        │
       │ refuse  │  └──────────────┘  │  └─┘ renew                  │ delete, expire
       │         │  hand_back,        │                             ├───────► deleted ► (no row)
       │         │  recover           │ fail, recover               │
       ▼         │                    ▼                             │
     failed ◄────┼──────────────────(failed) ───────────────────────┤
       ▲         │                                                  │
       └ abandon ┤                                                  │
                 └─ cancel ─► cancelled ◄─ cancel (of processing) ──┘

MOVES is the same as a table: there is no other way from one state to another. Each move is one atomic statement that
names the state it expects. What a worker says also names the attempt: `claim` raises that number, and so whatever a
worker says about a task that was cancelled, or given to another one in the meantime, changes nothing (it is the fencing
token). The webhook that an end owes is written in the same transaction.

A task is *recovered* when its worker is lost: killed, or silent for longer than its lease. It then goes back to its
place in the queue, until it has lost as many workers as the operator allows: such a task fails, because it may be what
kills them. A task is *abandoned* when no worker that serves its model was seen for as long as the operator allows. A
worker draws several tasks together, so those beside the killer lose theirs too; from then on they are
*suspected*, and only claimed by a worker that has nothing else to draw.

**Room.** The smallest turn is claimed first, and who does not fit into a worker's `Room` keeps the head of the queue:
it is the next one, so that nobody starves. Meanwhile a huge task may fill that room for minutes. So a worker has a
`Reserve` beside it, for keys that have nothing there (`claim_beside`): one task a key, which takes no more than half of
the work that is left, so that there is always room for a smaller one. What is claimed there does not count in the
room, and the turn that is served does not move by it: so whoever was passed over is not held up by it.

All that decides the picture is settled at submission, the seed and the names of the outputs included. So a task
that is drawn again after a crash gives the same picture under the same name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.errors import TaskFailed
from hidream.store import outbox
from hidream.store.database import Database
from hidream.store.prediction import COLUMNS, Prediction, writable
from hidream.store.schema import PREDICTIONS as P
from hidream.store.schema import PREVIEWS, VIRTUAL_STARTS, WORKERS
from hidream.types import Mode, Status

TRANSITIONS: Mapping[str, tuple[tuple[Status, ...], Status]] = {
    "claim": ((Status.CREATED,), Status.PROCESSING),
    "complete": ((Status.PROCESSING,), Status.COMPLETED),
    "fail": ((Status.PROCESSING,), Status.FAILED),
    "requeue": ((Status.PROCESSING,), Status.CREATED),
    "abandon": ((Status.CREATED,), Status.FAILED),
    "cancel": ((Status.CREATED, Status.PROCESSING), Status.CANCELLED),
    "delete": ((Status.COMPLETED, Status.FAILED, Status.CANCELLED), Status.DELETED),
}
"""From which states each move leads, and to which."""

ABANDON_BATCH = 500
"""Tasks that one transaction fails: more would hold up those who submit."""
VIRTUAL_TIME = ""
"""The row of `turns` that says which turn is being served."""
LOOK_AHEAD = 1000
"""Tasks from the head of the queue among which a reserve looks for one that fits: a millisecond's worth of index. A key
that has nothing anywhere stands behind no more than one task of each other key, so it takes as many keys to hide it."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much a worker can take: so many tasks, of so much work in all, but always one; and if it has others.

    `has_tasks` is about those in this room; `reserved`, whether there are any in its reserve.
    """

    tasks: int
    work: int
    has_tasks: bool
    reserved: bool = False


@dataclass(frozen=True, slots=True)
class ReserveCapacity:
    """How much a worker can take beside its room: so many tasks, of so much work, of other keys than these."""

    tasks: int
    work: int
    excluded_keys: frozenset[str]


@dataclass(frozen=True, slots=True)
class Lease:
    """A task that a worker holds: its claim, and whether somebody watches it being drawn."""

    id: str
    attempt: int
    watched: bool


@dataclass(frozen=True, slots=True)
class StepReport:
    """How far a drawing is, and perhaps the bytes of a small picture of it."""

    step: int
    steps: int
    preview: bytes | None = None


async def claim(
    database: Database, models: Sequence[str], worker_id: str, versions: Versions, lease_s: float, room: Capacity
) -> list[Prediction]:
    """Take the tasks whose turn it is, of those that wait for one of `models`, for `lease_s` seconds.

    Their rows say by which of `versions` they are drawn. A suspected task is taken alone, and not beside others; but it
    is not passed over, so that it does not wait for as long as others come.
    """
    first = (
        sa.select(*_CLAIMED)
        .where(*_waits_for(models))
        .order_by(*_QUEUE_ORDER)
        .limit(room.tasks)
        .with_for_update(skip_locked=True)
    )
    async with database.read() as connection:  # most of the time none is to be had, and that is no reason to write
        line = (
            sa.select(P.c.work, P.c.workers_lost).where(*_waits_for(models)).order_by(*_QUEUE_ORDER).limit(room.tasks)
        )
        if not _fitting((await connection.execute(line)).all(), room):
            return []
    async with database.write() as connection:
        chosen = _fitting((await connection.execute(first)).all(), room)
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
    """Take what fits into a reserve, though it is not its turn yet; as `claim` does otherwise.

    For a worker whose room has tasks, and none that is suspected. What is suspected is not taken, and not waited for.
    """
    ahead = sa.select(*_QUEUE_ORDER, P.c.key_id, P.c.work).where(*_waits_for(models)).order_by(*_QUEUE_ORDER)
    line = ahead.limit(LOOK_AHEAD).subquery()  # the index has all of it
    wanted = (
        sa.select(line.c.id, line.c.key_id, line.c.work)
        .join(P, P.c.id == line.c.id)
        .where(line.c.work <= reserve.work // 2, line.c.key_id.not_in(reserve.excluded_keys), P.c.workers_lost == 0)
        .order_by(line.c.virtual_start, line.c.created_ms, line.c.id)
    )
    async with database.read() as connection:
        ids = _reserved((await connection.execute(wanted)).all(), reserve)
    if not ids:
        return []
    still = sa.select(*_CLAIMED).where(P.c.id.in_(ids), _STATUS_OF_ROW == Status.CREATED, P.c.workers_lost == 0)
    async with database.write() as connection:
        chosen = (await connection.execute(still.with_for_update(skip_locked=True))).all()
        if not chosen:
            return []
        return await _claim_rows(connection, chosen, worker_id, versions, database.now_ms(), lease_s)


async def renew(database: Database, worker_id: str, lease_s: float) -> set[Lease]:
    """Lengthen the leases of all tasks that this worker holds, and say which."""
    now = database.now_ms()
    statement = (
        sa.update(P)
        .where(P.c.status == Status.PROCESSING, P.c.worker_id == worker_id)
        .values(lease_until_ms=now + round(lease_s * 1000))
        .returning(P.c.id, P.c.attempt, P.c.watched_until_ms)
    )
    async with database.write(quiet=True) as connection:
        rows = (await connection.execute(statement)).all()
    return {Lease(row.id, row.attempt, row.watched_until_ms > now) for row in rows}


async def report(database: Database, worker_id: str, steps: Mapping[tuple[str, int], StepReport]) -> set[Lease]:
    """Write down how far drawings are, by id and attempt; say which of the worker's are still its own, and watched."""
    now = database.now_ms()
    held: set[Lease] = set()
    async with database.write() as connection:
        for (id_, attempt), at in steps.items():
            statement = (
                sa.update(P)
                .where(P.c.id == id_, P.c.attempt == attempt, P.c.status == Status.PROCESSING)
                .where(P.c.worker_id == worker_id)
                .values(step=at.step, steps=at.steps)
                .returning(P.c.watched_until_ms)
            )
            watched_until_ms = (await connection.execute(statement)).scalar()
            if watched_until_ms is None:
                continue
            held.add(Lease(id_, attempt, watched_until_ms > now))
            if at.preview is not None:
                await connection.execute(sa.delete(PREVIEWS).where(PREVIEWS.c.prediction_id == id_))
                row = {"prediction_id": id_, "step": at.step, "picture": at.preview}
                await connection.execute(sa.insert(PREVIEWS).values(row))
    return held


async def complete(
    database: Database,
    task: Prediction,
    nsfw: Sequence[bool],
    inference_ms: int,
    warnings: Sequence[str] = (),
    output_bytes: int = 0,
) -> bool:
    """Say that a claimed task's pictures are in their places; False if the task is no longer this claim's.

    `warnings` follow those that the task was taken in with, `output_bytes` is what the files have together.
    """
    values = {"nsfw": list(nsfw), "has_nsfw": any(nsfw), "inference_ms": inference_ms, "output_bytes": output_bytes}
    values |= {"warnings": [*task.warnings, *warnings]}
    return await _leave_processing(database, task, "complete", **values, finished_ms=database.now_ms())


async def fail(database: Database, task: Prediction, code: int, error: str) -> bool:
    """Say that a claimed task cannot be done, and why; False if the task is no longer this claim's."""
    values = {"code": code, "error": writable(error)}
    return await _leave_processing(database, task, "fail", **values, finished_ms=database.now_ms())


async def requeue(database: Database, task: Prediction | Lease, *, quarantined: bool = False) -> bool:
    """Put a claimed task back to its place in the queue; False if the task is no longer this claim's.

    It is `suspected` if something went wrong that may be its doing, as if it had lost its worker.
    """
    lost = P.c.workers_lost + int(quarantined)
    return await _leave_processing(database, task, "requeue", started_ms=None, step=0, workers_lost=lost)


async def recover(database: Database, workers_max: int, lost_worker_id: str | None = None) -> int:
    """Take from lost workers what they hold (tasks out of lease, all of `lost_worker_id`) and say how many.

    A task that has lost `workers_max` workers fails; the others go back to their places in the queue.
    """
    now = database.now_ms()
    lost = sa.or_(P.c.lease_until_ms < now, P.c.worker_id == lost_worker_id)
    orphans = sa.select(P.c.id).where(P.c.status == Status.PROCESSING, lost)
    async with database.read() as connection:  # most of the time there is none, and that is no reason to write
        if not (await connection.execute(orphans.limit(1))).all():
            return 0
    free = {"workers_lost": P.c.workers_lost + 1, "worker_id": None, "lease_until_ms": None}
    error = f"the worker was lost {workers_max} times while it drew this picture"
    hopeless = (
        _transition("fail")
        .where(P.c.workers_lost + 1 >= workers_max)
        .values(code=TaskFailed.code, error=error, finished_ms=now, **free)
    )
    hopeful = _transition("requeue").where(P.c.workers_lost + 1 < workers_max).values(started_ms=None, step=0, **free)
    async with database.write() as connection:
        ids = (await connection.scalars(orphans.with_for_update(skip_locked=True))).all()  # not those renewed just now
        failed = await _end(connection, hopeless.where(P.c.id.in_(ids)), now)
        returned = await connection.execute(hopeful.where(P.c.id.in_(ids)))
    return failed + returned.rowcount


async def abandon(database: Database, unserved_s: float) -> int:
    """Fail some tasks that wait for a model of which no worker was seen for so long, and say how many.

    The time begins when a task is submitted, and anew whenever a worker of its model is seen.
    """
    now = database.now_ms()
    before = now - round(unserved_s * 1000)
    waiting = sa.select(P.c.model).where(P.c.status == Status.CREATED, P.c.created_ms <= before).distinct()
    seen = sa.select(WORKERS.c.models).where(WORKERS.c.seen_ms > before)
    async with database.read() as connection:  # most of the time there is none, and that is no reason to write
        models = {*await connection.scalars(waiting)}
        if not models or models <= _all_of(await connection.scalars(seen)):
            return 0
    async with database.write() as connection:
        unserved = models - _all_of(await connection.scalars(seen))  # one may have come meanwhile
        old = sa.select(P.c.id).where(*_waits_for(sorted(unserved)), P.c.created_ms <= before).limit(ABANDON_BATCH)
        ids = (await connection.scalars(old.with_for_update(skip_locked=True))).all()
        error = f"no worker that serves its model was seen for {unserved_s:g} seconds"
        values = {"code": TaskFailed.code, "error": error, "finished_ms": now}
        return await _end(connection, _transition("abandon").where(P.c.id.in_(ids)).values(**values), now)


async def cancel(database: Database, prediction_id: str, key_id: str) -> bool:
    """End a task that is not finished; whoever draws it is told by its next `renew` or `report`."""
    return await cancel_all(database, [prediction_id], key_id) == 1


async def cancel_all(database: Database, prediction_ids: Collection[str], key_id: str) -> int:
    """End those of these tasks that are not finished, in one transaction; say how many."""
    now = database.now_ms()
    free = {"worker_id": None, "lease_until_ms": None}
    mine = _transition("cancel").where(P.c.id.in_(prediction_ids), P.c.key_id == key_id)
    async with database.write() as connection:
        return await _end(connection, mine.values(finished_ms=now, error="cancelled by its client", **free), now)


async def delete(database: Database, prediction_ids: Collection[str], key_id: str) -> list[Prediction]:
    """Hide finished tasks from now on, and give them, for their files to be removed; what is left `retention.py` finds.

    Their rows go later.
    """
    mine = _transition("delete").where(P.c.id.in_(prediction_ids), P.c.key_id == key_id).returning(*COLUMNS)
    async with database.write() as connection:
        rows = (await connection.execute(mine)).all()
    return [Prediction.of_row(row) for row in rows]


async def has_no_images(database: Database, prediction_id: str) -> bool:
    """Whether a task has ended without pictures, or is gone: files of it are nobody's."""
    async with database.read() as connection:
        status = (await connection.scalars(sa.select(P.c.status).where(P.c.id == prediction_id))).first()
    return status in (None, Status.FAILED, Status.CANCELLED, Status.DELETED)


def _all_of(models: Iterable[Sequence[str]]) -> set[str]:
    return {model for each in models for model in each}


def _waits_for(models: Sequence[str]) -> tuple[sa.ColumnElement[bool], ...]:
    return P.c.status == Status.CREATED, P.c.model.in_(models)


def _transition(move: str) -> sa.Update:
    """Begin the statement of a move of rows that are named by their ids."""
    sources, target = TRANSITIONS[move]
    return sa.update(P).where(_STATUS_OF_ROW.in_(sources)).values(status=target)


def _fitting(waiting: Sequence[Any], room: Capacity) -> Sequence[Any]:
    """Take from the front what there is room for."""
    if waiting and waiting[0].workers_lost:
        return [] if room.has_tasks or room.reserved else waiting[:1]
    count, work = 0, 0
    for row in waiting:
        work += row.work
        if row.workers_lost or (work > room.work and (count or room.has_tasks)):
            break
        count += 1
    return waiting[:count]


def _reserved(waiting: Sequence[Any], reserve: ReserveCapacity) -> list[str]:
    """Take one of each key, if it leaves as much work as it takes."""
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
    """Make rows that wait, and are locked, a worker's own."""
    statement = (
        _transition("claim")
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


_STATUS_OF_ROW: sa.ColumnElement[str] = P.c.status.concat("")
"""The state, where rows are found by their ids: SQLite would rather read all that are in a state, by its index."""
_QUEUE_ORDER = (P.c.virtual_start, P.c.created_ms, P.c.id)
"""The order of the queue."""
_CLAIMED = (P.c.id, P.c.model, P.c.input, P.c.virtual_start, P.c.work, P.c.workers_lost)
"""What is read of a row before it is claimed."""
Versions = Mapping[str, Mapping[Mode, str]]
"""What each model's pictures are called in each mode."""


def _version(versions: Versions, row: sa.Row[Any]) -> str:
    # Not in SQL: to find the mode, PostgreSQL would have to read the whole JSON, and fails at a prompt's zero byte.
    modes = versions[row.model]
    return modes.get(row.input.get("mode", Mode.EXACT), modes[Mode.EXACT])


async def _leave_processing(
    database: Database,
    task: Prediction | Lease,
    move: str,
    **values: Any,  # noqa: ANN401
) -> bool:
    statement = (
        _transition(move)
        .where(P.c.id == task.id, P.c.attempt == task.attempt)
        .values(worker_id=None, lease_until_ms=None, **values)
    )
    async with database.write() as connection:
        return await _end(connection, statement, database.now_ms()) == 1


async def _end(connection: AsyncConnection, statement: sa.Update, now: int) -> int:
    """Make a move, write down the webhooks that it owes, drop previews; say how many tasks it moved."""
    rows = (await connection.execute(statement.returning(P.c.id, P.c.key_id, P.c.status, P.c.webhook))).all()
    ended = [row for row in rows if Status(row.status).final]
    await outbox.add(connection, [(row.id, row.key_id, row.webhook) for row in ended if row.webhook], now)
    if ended:
        await connection.execute(sa.delete(PREVIEWS).where(PREVIEWS.c.prediction_id.in_([row.id for row in ended])))
    return len(rows)
