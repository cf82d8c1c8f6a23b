"""Admission control: limits, fair queueing and idempotency for one batch of new tasks.

A transaction reads what it needs with one query of each kind and writes with one statement of each kind, however many
tasks are in the batch. It keeps nothing for the next transaction: other processes enqueue tasks too.

**Fair queueing.** Each task gets a *virtual start time*, and the smallest is served first. A key's next task starts
where its last one ended (`virtual_start + work`), but not before the system's virtual time, which is the virtual start
time of the task in service. So a key with a thousand tasks does not delay another key's first task, and an idle key
saves up nothing. (Start-time fair queueing: Goyal, Vin and Cheng 1996.) A key may occupy only its share of the queue,
and the last places are for keys that have no tasks.

**Priority.** The virtual start time of a task is earlier by `PRIORITY_WORK` for each level of its key's priority. The
next task of the key still starts where this one would have ended without that. So priority is a head start, not a
larger share: while the virtual time advances by w, a key is served at most w and its head start, and then one more
task. A task waits for a key whose priority is higher by n levels at most `n * PRIORITY_WORK` longer than for one of its
own priority, so no task starves. Two keys that always have tasks are served equally, whatever their priorities are.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.errors import Conflict, Forbidden, PromptRefused, TooMany
from hidream.file_names import random_name
from hidream.request import ImageRequest
from hidream.store import outbox, uploads
from hidream.store.claims import VIRTUAL_TIME
from hidream.store.database import Database
from hidream.store.keys import Key, Limits
from hidream.store.prediction import COLUMNS, Prediction, writable
from hidream.store.schema import DAY_MS, MINUTE_MS
from hidream.store.schema import IDEMPOTENCY_RECORDS as IDEMPOTENCY
from hidream.store.schema import PREDICTIONS as P
from hidream.store.schema import VIRTUAL_STARTS as STARTS
from hidream.types import USUAL_WORK, Status

PRIORITY_WORK = USUAL_WORK
"""The head start of each level of priority in virtual time, pixel steps; that of an engine is its `priority_weight`."""
RETRY_AFTER_S = 5
"""The Retry-After of a client that finds the queue full."""
IDEMPOTENCY_MS = DAY_MS
"""How long an Idempotency-Key is valid."""
NEW_KEY_SHARE = 0.1
"""The share of the queue that is reserved for keys without unfinished tasks, so that their first one is admitted."""

# The statements are built once: building one takes as long as executing it.
_UNFINISHED = [status for status in Status if not status.final]
_COUNTS = (
    sa.select(sa.literal_column("1").label("is_count"), P.c.key_id, sa.func.count().label("number"))
    .where(P.c.status.in_(_UNFINISHED))
    .group_by(P.c.key_id)
)
_NEXT = sa.select(sa.literal_column("0"), STARTS.c.key_id, STARTS.c.next).where(
    STARTS.c.key_id.in_(sa.bindparam("key_ids", expanding=True))
)
_COUNTS_AND_STARTS = sa.union_all(_COUNTS, _NEXT)
_INSERT_TASKS, _INSERT_IDEMPOTENCY, _INSERT_STARTS = sa.insert(P), sa.insert(IDEMPOTENCY), sa.insert(STARTS)
_UPDATE_STARTS = (
    sa.update(STARTS).where(STARTS.c.key_id == sa.bindparam("id")).values(next=sa.bindparam("virtual_start"))
)


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """Identifies a request that is sent again: the client's Idempotency-Key, and a digest of the request."""

    idempotency_key: str
    body_hash: str


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task that is to be enqueued; one with a `refusal` is stored as failed.

    The worker's own warnings are added to `warnings`.
    """

    key: Key
    model: str
    submission: ImageRequest
    base_url: str = ""
    webhook: str = ""
    idempotency: IdempotencyRecord | None = None
    refusal: PromptRefused | None = None
    warnings: tuple[str, ...] = ()

    @property
    def work(self) -> int:
        """Its cost in pixel steps."""
        return self.submission.work(self.model)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many unfinished tasks there may be: `tasks_max` of all keys, and `share` of that per key."""

    tasks_max: int
    share: float = 1.0

    @property
    def tasks_max_per_key(self) -> int:
        """The limit of one key."""
        return max(1, int(self.tasks_max * self.share + 1e-6))  # 100 * 0.29 is 28.999999999999996

    @property
    def reserved(self) -> int:
        """How many of all places are reserved for keys without tasks."""
        return int(self.tasks_max * NEW_KEY_SHARE)


@dataclass(slots=True)
class _Usage:
    """What a key has used lately, and when it made its first request of the last minute and day."""

    minute_since_ms: int
    day_since_ms: int
    unfinished: int = 0
    last_minute: int = 0
    pixels: int = 0
    kept_bytes: int = 0
    work: int = 0


@dataclass(slots=True)
class Admission:
    """What the transaction has read, and what it will write."""

    now: int
    unfinished: int
    virtual_time: int | None
    virtual_starts: dict[str, int]
    usage: dict[str, _Usage]
    known_keys: frozenset[str]
    created: dict[tuple[str, str], tuple[str, Prediction]] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    predictions: list[Prediction] = field(default_factory=list)
    idempotency_rows: list[dict[str, object]] = field(default_factory=list)

    @classmethod
    async def load(cls, database: Database, connection: AsyncConnection, batch: Sequence[NewTask]) -> Admission:
        """Read what limits and fair queueing need."""
        now = database.now_ms()
        key_ids = {new.key.id for new in batch}
        unfinished: dict[str, int] = {}
        virtual_start: dict[str, int] = {}
        found = await connection.execute(_COUNTS_AND_STARTS, {"key_ids": [*key_ids, VIRTUAL_TIME]})
        for is_count, key_id, number in found:
            (unfinished if is_count else virtual_start)[key_id] = number
        usage = {key_id: _Usage(now, now, unfinished.get(key_id, 0)) for key_id in key_ids}
        limits = {new.key.id: new.key.limits for new in batch}
        await _add_usage(connection, usage, limits, now)
        by_bytes = [key_id for key_id, each in limits.items() if each.bytes_max]
        for key_id, kept in (await uploads.stored_bytes(database, connection, by_bytes)).items():
            usage[key_id].kept_bytes = kept
        known = frozenset(virtual_start)
        gone = await uploads.withdrawn(connection, {name for new in batch for name in _uploads_of(new.submission)})
        return cls(
            now, sum(unfinished.values()), virtual_start.pop(VIRTUAL_TIME, None), virtual_start, usage, known, gone=gone
        )

    async def load_idempotency(self, connection: AsyncConnection, batch: Sequence[NewTask]) -> None:
        """Read the tasks that the batch's Idempotency-Keys have created."""
        self.created = await _created(connection, batch, self.now)

    def existing(self, new: NewTask) -> Prediction | None:
        """Return the task that the same request has created before. Raises Conflict."""
        if new.idempotency is None:
            return None
        found = self.created.get((new.key.id, new.idempotency.idempotency_key))
        if found is None:
            return None
        body_hash, prediction = found
        if body_hash != new.idempotency.body_hash:
            raise Conflict(
                f"Idempotency-Key {new.idempotency.idempotency_key!r:.100} was sent with another request in the last "
                "24 hours; accepted: the same request again, or a new key"
            )
        return prediction

    def add_pending(self, pending: Mapping[str, int]) -> None:
        """Count tasks that are being prepared, by key id, as if they were enqueued."""
        self.unfinished += sum(pending.values())
        for key_id, count in pending.items():
            if usage := self.usage.get(key_id):
                usage.unfinished += count
                usage.last_minute += count

    def check(self, new: NewTask, queue: QueueLimits) -> None:
        """Raise Forbidden if a key may never have such a task, TooMany if not now, InvalidInput if uploads are gone."""
        usage, limits = self.usage[new.key.id], new.key.limits
        _check_task(new, limits)
        if new.refusal is None:
            self._check_queue(usage, queue)
            if not self.gone.isdisjoint(_uploads_of(new.submission)):
                raise uploads.gone_error()
        self._check_usage(new, usage, limits)

    def admit(self, new: NewTask, queue: QueueLimits) -> Prediction:
        """Create a task. Raises what `check` does."""
        self.check(new, queue)
        usage, prediction = self.usage[new.key.id], self._prediction(new)
        self.predictions.append(prediction)
        if new.refusal is None:
            self.unfinished += 1
            usage.unfinished += 1
            usage.pixels += prediction.pixels
            usage.work += prediction.work
        usage.last_minute += 1
        if new.idempotency is not None:
            key = (new.key.id, new.idempotency.idempotency_key)
            self.created[key] = new.idempotency.body_hash, prediction
            row = dataclasses.asdict(new.idempotency) | {"key_id": new.key.id, "prediction_id": prediction.id}
            self.idempotency_rows.append(row | {"created_ms": self.now})
        return prediction

    async def write(self, connection: AsyncConnection) -> None:
        """Write what was created."""
        if not self.predictions:
            return
        await connection.execute(_INSERT_TASKS, [prediction.to_row() for prediction in self.predictions])
        await uploads.mark_used(connection, {name for p in self.predictions for name in _uploads_of(p.input)}, self.now)
        webhooks = [(p.id, p.key_id, p.webhook) for p in self.predictions if p.status.final and p.webhook]
        await outbox.add(connection, webhooks, self.now)
        if self.idempotency_rows:
            await connection.execute(_INSERT_IDEMPOTENCY, self.idempotency_rows)
        virtual_starts = dict(self.virtual_starts) | ({VIRTUAL_TIME: 0} if self.virtual_time is None else {})
        new = [
            {"key_id": key_id, "next": virtual_start}
            for key_id, virtual_start in virtual_starts.items()
            if key_id not in self.known_keys
        ]
        old = [
            {"id": key_id, "virtual_start": virtual_start}
            for key_id, virtual_start in virtual_starts.items()
            if key_id in self.known_keys
        ]
        if new:
            await connection.execute(_INSERT_STARTS, new)
        if old:
            await connection.execute(_UPDATE_STARTS, old)

    def _check_queue(self, usage: _Usage, queue: QueueLimits) -> None:
        if self.unfinished >= queue.tasks_max:
            raise TooMany(f"{self.unfinished} tasks wait, as many as are allowed; try again later", RETRY_AFTER_S)
        if usage.unfinished >= queue.tasks_max_per_key:
            raise TooMany(
                f"{usage.unfinished} tasks of this key wait, its share of the queue; try again later", RETRY_AFTER_S
            )
        if usage.unfinished and self.unfinished >= queue.tasks_max - queue.reserved:
            raise TooMany(
                f"{self.unfinished} tasks wait, and the last {queue.reserved} places are for keys that have none; "
                "try again later",
                RETRY_AFTER_S,
            )

    def _check_usage(self, new: NewTask, usage: _Usage, limits: Limits) -> None:
        if limits.requests_per_minute and usage.last_minute >= limits.requests_per_minute:
            wait_s = _until(usage.minute_since_ms + MINUTE_MS, self.now)
            raise TooMany(f"this key may make {limits.requests_per_minute} requests a minute; try again later", wait_s)
        if limits.tasks_max and usage.unfinished >= limits.tasks_max:
            raise TooMany(f"{usage.unfinished} tasks of this key are unfinished, as many as it may have", RETRY_AFTER_S)
        if limits.pixels_per_day and usage.pixels + new.submission.pixels > limits.pixels_per_day:
            wait_s = _until(usage.day_since_ms + DAY_MS, self.now)
            raise TooMany(
                f"this key may generate {limits.pixels_per_day} pixels a day, of which it has used {usage.pixels}",
                wait_s,
            )
        if limits.work_per_day and usage.work + new.work > limits.work_per_day:
            wait_s = _until(usage.day_since_ms + DAY_MS, self.now)
            raise TooMany(
                f"this key may use {limits.work_per_day} pixel steps a day, of which it has used {usage.work}; this "
                f"task takes {new.work}",
                wait_s,
            )
        uploads.check_bytes(limits, usage.kept_bytes)

    def _prediction(self, new: NewTask) -> Prediction:
        refusal, submission = new.refusal, new.submission
        fair_start = max(self.virtual_starts.get(new.key.id, 0), self.virtual_time or 0)
        if refusal is None:
            self.virtual_starts[new.key.id] = fair_start + new.work
        return Prediction(
            id=uuid.uuid4().hex,
            key_id=new.key.id,
            model=new.model,
            input=submission,
            output_name=random_name(submission.output_format),
            status=Status.FAILED if refusal else Status.CREATED,
            code=refusal.code if refusal else 0,
            error=writable(refusal.message) if refusal else "",
            version="",
            nsfw=(),
            created_ms=self.now,
            started_ms=None,
            finished_ms=self.now if refusal else None,
            inference_ms=0,
            warnings=new.warnings,
            attempt=0,
            workers_lost=0,
            pixels=0 if refusal else submission.pixels,
            work=0 if refusal else new.work,
            virtual_start=fair_start - new.key.priority * PRIORITY_WORK,
            base_url=new.base_url,
            webhook=new.webhook,
            step=0,
            steps=0,
            priority=new.key.priority,
        )


def _uploads_of(submission: ImageRequest) -> list[str]:
    """Name the uploads that a task uses."""
    return [name for name in (submission.image, submission.mask) if isinstance(name, str)]


async def _add_usage(
    connection: AsyncConnection, usage: Mapping[str, _Usage], limits: Mapping[str, Limits], now: int
) -> None:
    """Count what keys with limits have used lately, including deleted and cancelled tasks."""
    by_minute = [key_id for key_id, each in limits.items() if each.requests_per_minute]
    if by_minute:
        requests = sa.select(P.c.key_id, sa.func.count(), sa.func.min(P.c.created_ms))
        for key_id, count, since in await connection.execute(_since(requests, by_minute, now - MINUTE_MS)):
            usage[key_id].last_minute, usage[key_id].minute_since_ms = count, since
    by_day = [key_id for key_id, each in limits.items() if each.pixels_per_day or each.work_per_day]
    if by_day:
        sums = sa.select(P.c.key_id, sa.func.sum(P.c.pixels), sa.func.sum(P.c.work), sa.func.min(P.c.created_ms))
        for key_id, pixels, work, since in await connection.execute(_since(sums, by_day, now - DAY_MS)):
            of_key = usage[key_id]
            of_key.pixels, of_key.work, of_key.day_since_ms = int(pixels), int(work), since


def _check_task(new: NewTask, limits: Limits) -> None:
    """Raise Forbidden if a task exceeds what its key may ever have."""
    request, steps = new.submission, new.submission.steps_of(new.model)
    size, pixels = request.size, request.size.width * request.size.height
    if limits.steps_max and steps > limits.steps_max:
        own = "" if request.steps else ", the model's own number"
        raise Forbidden(
            f"num_inference_steps is {steps}{own}; accepted from this key: up to {limits.steps_max}",
            field="num_inference_steps",
        )
    if limits.pixels_max and pixels > limits.pixels_max:
        raise Forbidden(
            f"size is {size}, {pixels} pixels; accepted from this key: up to {limits.pixels_max} pixels", field="size"
        )
    if limits.images_max and request.num_images > limits.images_max:
        raise Forbidden(
            f"num_images is {request.num_images}; accepted from this key: up to {limits.images_max}", field="num_images"
        )
    if limits.pixels_per_day and request.pixels > limits.pixels_per_day:
        raise Forbidden(
            f"the task has {request.pixels} pixels; accepted from this key: up to {limits.pixels_per_day} a day"
        )
    if limits.work_per_day and new.work > limits.work_per_day:
        raise Forbidden(
            f"the task takes {new.work} pixel steps; accepted from this key: up to {limits.work_per_day} a day"
        )


def _since(sums: sa.Select[Any], key_ids: Sequence[str], after_ms: int) -> sa.Select[Any]:
    return sums.where(P.c.key_id.in_(key_ids), P.c.created_ms > after_ms).group_by(P.c.key_id)


async def _created(
    connection: AsyncConnection, batch: Sequence[NewTask], now: int
) -> dict[tuple[str, str], tuple[str, Prediction]]:
    """Return what the batch's Idempotency-Keys have created, with the requests' digests; delete old records."""
    wanted = [(new.key.id, new.idempotency.idempotency_key) for new in batch if new.idempotency]
    if not wanted:
        return {}
    await connection.execute(sa.delete(IDEMPOTENCY).where(IDEMPOTENCY.c.created_ms <= now - IDEMPOTENCY_MS))
    name = sa.tuple_(IDEMPOTENCY.c.key_id, IDEMPOTENCY.c.idempotency_key)
    statement = (
        sa.select(IDEMPOTENCY.c.idempotency_key, IDEMPOTENCY.c.body_hash, *COLUMNS)
        .join(P, P.c.id == IDEMPOTENCY.c.prediction_id)
        .where(name.in_(wanted))
    )
    found = {}
    for row in await connection.execute(statement):
        prediction = Prediction.of_row(row[2:])
        found[prediction.key_id, row.idempotency_key] = row.body_hash, prediction
    return found


def _until(then_ms: int, now: int) -> int:
    """The time until then in whole seconds, at least one."""
    return max(1, -(-(then_ms - now) // 1000))
