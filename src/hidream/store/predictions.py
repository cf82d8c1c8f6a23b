"""Predictions: the states that a task goes through, and the queue that they are.

                        claim                complete
   (enqueue) ► created ────────► processing ──────────► completed ─┐
       │         │  ▲              │  │  ▲ │                        │
       │ refuse  │  └──────────────┘  │  └─┘ renew                  │ delete, expire
       │         │  requeue,          │                             ├───────► deleted ► (no row)
       │         │  recover           │ fail, recover               │
       ▼         │                    ▼                             │
     failed ◄────┼──────────────────(failed) ───────────────────────┤
       ▲         │                                                  │
       └ abandon ┤                                                  │
                 └─ cancel ─► cancelled ◄─ cancel (of processing) ──┘

TRANSITIONS is the same diagram as a table; there are no other transitions. Each transition is one atomic statement that
is guarded by the expected states. Reports of a worker are also guarded by the attempt number, which `claim` increments:
it is the fencing token. So what a worker reports about a task that was cancelled, or claimed by another worker
meanwhile, changes nothing. The webhook of a finished task is added to the outbox in the same transaction.

A task is *recovered* when its worker is lost: killed, or silent for longer than its lease. It returns to its place in
the queue. When it has lost as many workers as the operator allows, it fails, because it may be what kills them. A task
is *abandoned* when no worker that serves its model was seen for as long as the operator allows. A worker generates
several tasks together, so the tasks beside the one that kills it lose their worker too; from then on all of them are
*quarantined*: a worker claims such a task only when it has no other. `claims` says which tasks a worker claims.

Everything that decides an image is fixed at submission, including the seed and the names of the output files. So a task
that is generated again after a crash produces the same image under the same name.
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
from hidream.store.schema import PREVIEWS, WORKERS
from hidream.types import Status, Step

TRANSITIONS: Mapping[str, tuple[tuple[Status, ...], Status]] = {
    "claim": ((Status.CREATED,), Status.PROCESSING),
    "complete": ((Status.PROCESSING,), Status.COMPLETED),
    "fail": ((Status.PROCESSING,), Status.FAILED),
    "requeue": ((Status.PROCESSING,), Status.CREATED),
    "abandon": ((Status.CREATED,), Status.FAILED),
    "cancel": ((Status.CREATED, Status.PROCESSING), Status.CANCELLED),
    "delete": ((Status.COMPLETED, Status.FAILED, Status.CANCELLED), Status.DELETED),
}
"""The states from which each transition starts, and the state in which it ends."""
STATUS_OF_ROW: sa.ColumnElement[str] = P.c.status.concat("")
"""The status of rows that are selected by id: without this, SQLite would scan the index of the status instead."""

ABANDON_BATCH = 500
"""Tasks that one transaction fails: more would block submissions for too long."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A task that a worker holds: its id, its attempt number, and whether a client watches its progress."""

    id: str
    attempt: int
    watched: bool


async def renew(database: Database, worker_id: str, lease_s: float) -> set[Lease]:
    """Renew the leases of all tasks that this worker holds, and return them."""
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


async def report(database: Database, worker_id: str, steps: Mapping[tuple[str, int], Step[bytes]]) -> set[Lease]:
    """Record the steps of tasks, by id and attempt; return the leases that the worker still holds.

    A preview is the bytes of a JPEG file.
    """
    now = database.now_ms()
    held: set[Lease] = set()
    async with database.write() as connection:
        for (id_, attempt), step in steps.items():
            statement = (
                sa.update(P)
                .where(P.c.id == id_, P.c.attempt == attempt, P.c.status == Status.PROCESSING)
                .where(P.c.worker_id == worker_id)
                .values(step=step.done, steps=step.of)
                .returning(P.c.watched_until_ms)
            )
            watched_until_ms = (await connection.execute(statement)).scalar()
            if watched_until_ms is None:
                continue
            held.add(Lease(id_, attempt, watched_until_ms > now))
            if step.preview is not None:
                await connection.execute(sa.delete(PREVIEWS).where(PREVIEWS.c.prediction_id == id_))
                row = {"prediction_id": id_, "step": step.done, "image": step.preview}
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
    """Complete a claimed task whose files are stored; return False if another claim holds the task now.

    `warnings` are appended to those of the request; `output_bytes` is the total size of the files.
    """
    values = {"nsfw": list(nsfw), "has_nsfw": any(nsfw), "inference_ms": inference_ms, "output_bytes": output_bytes}
    values |= {"warnings": [*task.warnings, *warnings]}
    return await _leave_processing(database, task, "complete", **values, finished_ms=database.now_ms())


async def fail(database: Database, task: Prediction, code: int, error: str) -> bool:
    """Fail a claimed task with an error; return False if another claim holds the task now."""
    values = {"code": code, "error": writable(error)}
    return await _leave_processing(database, task, "fail", **values, finished_ms=database.now_ms())


async def requeue(database: Database, task: Prediction | Lease, *, quarantined: bool = False) -> bool:
    """Return a claimed task to its place in the queue; return False if another claim holds the task now.

    It becomes `quarantined`, as if it had lost its worker, when it may have caused a failure.
    """
    lost = P.c.workers_lost + int(quarantined)
    return await _leave_processing(database, task, "requeue", started_ms=None, step=0, workers_lost=lost)


async def recover(database: Database, workers_max: int, lost_worker_id: str | None = None) -> int:
    """Requeue the tasks of lost workers: expired leases, and all tasks of `lost_worker_id`. Return how many.

    A task that has lost `workers_max` workers fails; the others return to their places in the queue.
    """
    now = database.now_ms()
    lost = sa.or_(P.c.lease_until_ms < now, P.c.worker_id == lost_worker_id)
    orphans = sa.select(P.c.id).where(P.c.status == Status.PROCESSING, lost)
    async with database.read() as connection:  # usually there are none, and a write would be wasted
        if not (await connection.execute(orphans.limit(1))).all():
            return 0
    free = {"workers_lost": P.c.workers_lost + 1, "worker_id": None, "lease_until_ms": None}
    error = f"the worker was lost {workers_max} times while it generated this task"
    hopeless = (
        transition("fail")
        .where(P.c.workers_lost + 1 >= workers_max)
        .values(code=TaskFailed.code, error=error, finished_ms=now, **free)
    )
    hopeful = transition("requeue").where(P.c.workers_lost + 1 < workers_max).values(started_ms=None, step=0, **free)
    async with database.write() as connection:
        ids = (
            await connection.scalars(orphans.with_for_update(skip_locked=True))
        ).all()  # except those renewed meanwhile
        failed = await _end(connection, hopeless.where(P.c.id.in_(ids)), now)
        returned = await connection.execute(hopeful.where(P.c.id.in_(ids)))
    return failed + returned.rowcount


async def abandon(database: Database, unserved_s: float) -> int:
    """Fail some tasks that wait for a model whose workers were not seen for `unserved_s`; return how many.

    The time starts when a task is submitted, and again whenever a worker of its model is seen.
    """
    now = database.now_ms()
    before = now - round(unserved_s * 1000)
    waiting = sa.select(P.c.model).where(P.c.status == Status.CREATED, P.c.created_ms <= before).distinct()
    seen = sa.select(WORKERS.c.models).where(WORKERS.c.seen_ms > before)
    async with database.read() as connection:  # usually there are none, and a write would be wasted
        models = {*await connection.scalars(waiting)}
        if not models or models <= _all_of(await connection.scalars(seen)):
            return 0
    async with database.write() as connection:
        unserved = models - _all_of(await connection.scalars(seen))  # a worker may have come meanwhile
        old = sa.select(P.c.id).where(*waits_for(sorted(unserved)), P.c.created_ms <= before).limit(ABANDON_BATCH)
        ids = (await connection.scalars(old.with_for_update(skip_locked=True))).all()
        error = f"no worker that serves its model was seen for {unserved_s:g} seconds"
        values = {"code": TaskFailed.code, "error": error, "finished_ms": now}
        return await _end(connection, transition("abandon").where(P.c.id.in_(ids)).values(**values), now)


async def cancel(database: Database, prediction_id: str, key_id: str) -> bool:
    """Cancel a task that is not finished; its worker hears of it from its next `renew` or `report`."""
    return await cancel_all(database, [prediction_id], key_id) == 1


async def cancel_all(database: Database, prediction_ids: Collection[str], key_id: str) -> int:
    """Cancel those of these tasks that are not finished, in one transaction; return how many."""
    now = database.now_ms()
    free = {"worker_id": None, "lease_until_ms": None}
    mine = transition("cancel").where(P.c.id.in_(prediction_ids), P.c.key_id == key_id)
    async with database.write() as connection:
        return await _end(connection, mine.values(finished_ms=now, error="cancelled by its client", **free), now)


async def delete(database: Database, prediction_ids: Collection[str], key_id: str) -> list[Prediction]:
    """Mark finished tasks as deleted, and return them, so that their files can be removed.

    `retention.py` removes the rows later, and files that were left.
    """
    mine = transition("delete").where(P.c.id.in_(prediction_ids), P.c.key_id == key_id).returning(*COLUMNS)
    async with database.write() as connection:
        rows = (await connection.execute(mine)).all()
    return [Prediction.of_row(row) for row in rows]


async def has_no_images(database: Database, prediction_id: str) -> bool:
    """Whether a task finished without images, or is deleted: its files can be removed."""
    async with database.read() as connection:
        status = (await connection.scalars(sa.select(P.c.status).where(P.c.id == prediction_id))).first()
    return status in (None, Status.FAILED, Status.CANCELLED, Status.DELETED)


def _all_of(models: Iterable[Sequence[str]]) -> set[str]:
    return {model for each in models for model in each}


def waits_for(models: Sequence[str]) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions of tasks that wait for one of these models."""
    return P.c.status == Status.CREATED, P.c.model.in_(models)


def transition(name: str) -> sa.Update:
    """Begin the statement of a transition of rows that are selected by their ids."""
    sources, target = TRANSITIONS[name]
    return sa.update(P).where(STATUS_OF_ROW.in_(sources)).values(status=target)


async def _leave_processing(
    database: Database,
    task: Prediction | Lease,
    name: str,
    **values: Any,  # noqa: ANN401
) -> bool:
    statement = (
        transition(name)
        .where(P.c.id == task.id, P.c.attempt == task.attempt)
        .values(worker_id=None, lease_until_ms=None, **values)
    )
    async with database.write() as connection:
        return await _end(connection, statement, database.now_ms()) == 1


async def _end(connection: AsyncConnection, statement: sa.Update, now: int) -> int:
    """Execute a transition, add webhooks to the outbox, and delete previews; return how many tasks it moved."""
    rows = (await connection.execute(statement.returning(P.c.id, P.c.key_id, P.c.status, P.c.webhook))).all()
    ended = [row for row in rows if Status(row.status).final]
    await outbox.add(connection, [(row.id, row.key_id, row.webhook) for row in ended if row.webhook], now)
    if ended:
        await connection.execute(sa.delete(PREVIEWS).where(PREVIEWS.c.prediction_id.in_([row.id for row in ended])))
    return len(rows)
