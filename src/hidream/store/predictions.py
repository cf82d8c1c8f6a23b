"""Predictions: what was asked, how far it is, and the queue that they are.

            submit              claim                complete
    (none) ───────► created ────────────► processing ────────► completed
       │              ▲                     │  │  ▲ │
       │ refuse       │  hand_back, recover │  │  └─┘ renew
       ▼              └─────────────────────┘  │
     failed ◄──────────────────────────────────┘ fail, recover

Each arrow is one function below and one atomic statement that names the state it expects. From `processing`
it also names the attempt: `claim` raises that number, and so whatever a worker says about a task that was
given to another one in the meantime changes nothing (it is the fencing token). A task is *recovered* when its
worker is lost: killed, or silent for longer than its lease. It then goes back to its place in the queue,
until it has lost as many workers as the operator allows: such a task fails, because it may be what kills
them. A worker draws several tasks together, so those beside the killer lose theirs too; from then on they
are *suspected*, and only claimed by a worker that has nothing else to draw.

All that decides the picture is settled at submission, the seed and the name of the output included. So a task
that is drawn again after a crash gives the same picture under the same name.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hidream.errors import PromptRefused, QueueFull, TaskFailed
from hidream.store.database import Database
from hidream.store.schema import PREDICTIONS as P
from hidream.store.submission import Submission
from hidream.types import Mode, Status

RETRY_AFTER_S = 5
"""What a client that finds the queue full is told to wait."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row. `attempt` counts the claims, `workers_lost` those that ended badly; times are ms since the epoch."""

    id: str
    key_id: str
    model: str
    input: Submission
    output_name: str
    status: Status
    code: int
    error: str
    version: str
    has_nsfw: bool | None
    created_ms: int
    started_ms: int | None
    finished_ms: int | None
    inference_ms: int
    warnings: tuple[str, ...]
    attempt: int
    workers_lost: int

    @property
    def execution_ms(self) -> int:
        """From the claim to the end in ms, 0 until then."""
        if self.started_ms is None or self.finished_ms is None:
            return 0
        return self.finished_ms - self.started_ms


_COLUMNS = tuple(P.c[name] for name in Prediction.__slots__)
_FINAL = [status for status in Status if status.final]
_UNFINISHED = [status for status in Status if not status.final]


async def submit(database: Database, key_id: str, model: str, submission: Submission, queue_max: int) -> Prediction:
    """Accept a request: once this returns, it will be drawn.

    Raises QueueFull when `queue_max` tasks are unfinished.
    """
    prediction = _new(database, key_id, model, submission, Status.CREATED)
    unfinished = sa.select(sa.func.count()).where(P.c.status.in_(_UNFINISHED))
    async with database.write() as connection:
        waiting = (await connection.execute(unfinished)).scalar_one()
        if waiting >= queue_max:
            raise QueueFull(f"{waiting} tasks wait, as many as are allowed; try again later", RETRY_AFTER_S)
        await connection.execute(_insert(prediction))
    return prediction


async def refuse(
    database: Database, key_id: str, model: str, submission: Submission, refusal: PromptRefused
) -> Prediction:
    """Write down a request that is not allowed: a task that has failed from the start."""
    prediction = _new(database, key_id, model, submission, Status.FAILED, refusal)
    async with database.write() as connection:
        await connection.execute(_insert(prediction))
    return prediction


async def get(database: Database, prediction_id: str, key_id: str) -> Prediction | None:
    """Look up a prediction; None if there is none of this id, or it is another key's."""
    wanted = sa.select(*_COLUMNS).where(P.c.id == prediction_id, P.c.key_id == key_id)
    async with database.read() as connection:
        row = (await connection.execute(wanted)).first()
    return _prediction(row) if row else None


async def ended(database: Database, prediction_ids: Collection[str]) -> set[str]:
    """Say which of these tasks have come to their end."""
    wanted = sa.select(P.c.id).where(P.c.id.in_(prediction_ids), P.c.status.in_(_FINAL))
    async with database.read() as connection:
        return set(await connection.scalars(wanted))


async def claim(
    database: Database,
    models: Sequence[str],
    worker_id: str,
    versions: Mapping[Mode, str],
    lease_s: float,
    *,
    beside_others: bool = False,
) -> Prediction | None:
    """Take the oldest task that waits for one of `models`, for `lease_s` seconds; None when nothing waits.

    Its row says by which of `versions` it is drawn. None also when the task would be drawn `beside_others`, and the
    oldest is suspected: it is not passed over, so that it does not wait for as long as others come.
    """
    now = database.now_ms()
    oldest = (
        sa.select(P.c.id)
        .where(P.c.status == Status.CREATED, P.c.model.in_(models))
        .order_by(P.c.created_ms, P.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    statement = (
        sa.update(P)
        .where(P.c.id == oldest, P.c.status == Status.CREATED, P.c.workers_lost == 0 if beside_others else sa.true())
        .values(
            status=Status.PROCESSING,
            attempt=P.c.attempt + 1,
            version=sa.case(dict(versions), value=P.c.input["mode"].as_string(), else_=versions[Mode.EXACT]),
            started_ms=now,
            worker_id=worker_id,
            lease_until_ms=now + round(lease_s * 1000),
        )
        .returning(*_COLUMNS)
    )
    async with database.write() as connection:
        row = (await connection.execute(statement)).first()
    return _prediction(row) if row else None


async def renew(database: Database, worker_id: str, lease_s: float) -> set[tuple[str, int]]:
    """Lengthen the leases of all tasks that this worker holds, and say which: their ids and attempts."""
    statement = (
        sa.update(P)
        .where(P.c.status == Status.PROCESSING, P.c.worker_id == worker_id)
        .values(lease_until_ms=database.now_ms() + round(lease_s * 1000))
        .returning(P.c.id, P.c.attempt)
    )
    async with database.write() as connection:
        return {(row.id, row.attempt) for row in await connection.execute(statement)}


async def complete(
    database: Database, task: Prediction, has_nsfw: bool, inference_ms: int, warnings: Sequence[str] = ()
) -> bool:
    """Say that a claimed task's picture is in its place; False if the task is no longer this claim's."""
    return await _leave_processing(
        database,
        task,
        status=Status.COMPLETED,
        has_nsfw=has_nsfw,
        inference_ms=inference_ms,
        warnings=list(warnings),
        finished_ms=database.now_ms(),
    )


async def fail(database: Database, task: Prediction, code: int, error: str) -> bool:
    """Say that a claimed task cannot be done, and why; False if the task is no longer this claim's."""
    return await _leave_processing(
        database, task, status=Status.FAILED, code=code, error=error, finished_ms=database.now_ms()
    )


async def hand_back(database: Database, task: Prediction, *, suspected: bool = False) -> bool:
    """Put a claimed task back to its place in the queue; False if the task is no longer this claim's.

    It is `suspected` if something went wrong that may be its doing, as if it had lost its worker.
    """
    lost = P.c.workers_lost + int(suspected)
    return await _leave_processing(database, task, status=Status.CREATED, started_ms=None, workers_lost=lost)


async def recover(database: Database, workers_max: int, lost_worker_id: str | None = None) -> int:
    """Take from lost workers what they hold (tasks out of lease, all of `lost_worker_id`) and say how many.

    A task that has lost `workers_max` workers fails; the others go back to their places in the queue.
    """
    now = database.now_ms()
    lost = sa.or_(P.c.lease_until_ms < now, P.c.worker_id == lost_worker_id)
    orphan = sa.update(P).where(P.c.status == Status.PROCESSING, lost)
    hopeless = orphan.where(P.c.workers_lost + 1 >= workers_max).values(
        status=Status.FAILED,
        code=TaskFailed.code,
        error=f"the worker was lost {workers_max} times while it drew this picture",
        workers_lost=P.c.workers_lost + 1,
        finished_ms=now,
        worker_id=None,
        lease_until_ms=None,
    )
    hopeful = orphan.where(P.c.workers_lost + 1 < workers_max).values(
        status=Status.CREATED,
        workers_lost=P.c.workers_lost + 1,
        started_ms=None,
        worker_id=None,
        lease_until_ms=None,
    )
    async with database.write() as connection:
        failed = await connection.execute(hopeless)
        returned = await connection.execute(hopeful)
    return failed.rowcount + returned.rowcount


async def _leave_processing(database: Database, task: Prediction, **values: Any) -> bool:  # noqa: ANN401
    statement = (
        sa.update(P)
        .where(P.c.id == task.id, P.c.status == Status.PROCESSING, P.c.attempt == task.attempt)
        .values(worker_id=None, lease_until_ms=None, **values)
    )
    async with database.write() as connection:
        return (await connection.execute(statement)).rowcount == 1


def _new(
    database: Database,
    key_id: str,
    model: str,
    submission: Submission,
    status: Status,
    refusal: PromptRefused | None = None,
) -> Prediction:
    now = database.now_ms()
    return Prediction(
        id=uuid.uuid4().hex,
        key_id=key_id,
        model=model,
        input=submission,
        output_name=f"{secrets.token_urlsafe(32)}.{submission.output_format}",
        status=status,
        code=refusal.code if refusal else 0,
        error=refusal.message if refusal else "",
        version="",
        has_nsfw=None,
        created_ms=now,
        started_ms=None,
        finished_ms=now if refusal else None,
        inference_ms=0,
        warnings=(),
        attempt=0,
        workers_lost=0,
    )


def _insert(prediction: Prediction) -> sa.Insert:
    row = {name: getattr(prediction, name) for name in Prediction.__slots__}
    return sa.insert(P).values(row | {"input": prediction.input.to_json()})


def _prediction(row: sa.Row[Any]) -> Prediction:
    values = dict(row._mapping)
    values["input"] = Submission.from_json(values["input"])
    values["status"] = Status(values["status"])
    values["warnings"] = tuple(values["warnings"])
    return Prediction(**values)
