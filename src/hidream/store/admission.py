"""What one transaction that takes tasks in knows and writes: limits, the queue, turns and repeated requests.

It is read by one query of each kind and written by one statement of each kind, however many tasks come at once. Nothing
is remembered from one transaction to the next: other processes take tasks in too.

**Fair sharing.** Each task gets a *turn*, and the smallest is served first. A key's next task begins its turn where
its last one's ended (`turn + work`), but never before the turn that is being served: so a key with a thousand tasks
does not hold up another's first, and nobody saves up turns by waiting. (Start-time fair queueing: Goyal, Vin and Cheng
1996.) Of the places in the queue a key may take its share, and the last ones are for keys that have none.
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
from hidream.file_names import draw_name
from hidream.request import ImageRequest
from hidream.store import outbox, uploads
from hidream.store.database import Database
from hidream.store.keys import Key, Limits
from hidream.store.prediction import COLUMNS, Prediction, writable
from hidream.store.predictions import VIRTUAL_TIME
from hidream.store.schema import IDEMPOTENCY_RECORDS, VIRTUAL_STARTS
from hidream.store.schema import PREDICTIONS as P
from hidream.types import Status

RETRY_AFTER_S = 5
"""What a client that finds the queue full is told to wait."""
MINUTE_MS, DAY_MS = 60_000, 86_400_000
IDEMPOTENCY_MS = DAY_MS
"""How long an Idempotency-Key is remembered."""
NEW_KEY_SHARE = 0.1
"""Of the queue, what is kept for keys that have no unfinished task: whatever others do, their first one is taken in."""

# The statements are made once: to make one takes as long as to execute it.
_UNFINISHED = [status for status in Status if not status.final]
_COUNTS = (
    sa.select(sa.literal_column("1").label("is_count"), P.c.key_id, sa.func.count().label("number"))
    .where(P.c.status.in_(_UNFINISHED))
    .group_by(P.c.key_id)
)
_NEXT = sa.select(sa.literal_column("0"), VIRTUAL_STARTS.c.key_id, VIRTUAL_STARTS.c.next).where(
    VIRTUAL_STARTS.c.key_id.in_(sa.bindparam("key_ids", expanding=True))
)
_COUNTS_AND_TURNS = sa.union_all(_COUNTS, _NEXT)
_TASKS_MADE, _REPEATS_MADE, _KEYS_MADE = sa.insert(P), sa.insert(IDEMPOTENCY_RECORDS), sa.insert(VIRTUAL_STARTS)
_TURNS_MOVED = (
    sa.update(VIRTUAL_STARTS).where(VIRTUAL_STARTS.c.key_id == sa.bindparam("id")).values(next=sa.bindparam("turn"))
)


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """What tells that a request was sent before: the client's Idempotency-Key, and a digest of the request."""

    idempotency_key: str
    body_hash: str


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to be taken in; one with a `refusal` is written down as failed.

    `warnings` are what its user should know already; whatever the worker has to add follows them.
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
        """What it costs, in pixel steps."""
        return self.submission.work(self.model)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many unfinished tasks there may be: `most` of all keys, and `share` of that of one key."""

    most: int
    share: float = 1.0

    @property
    def of_one_key(self) -> int:
        """The most of one key."""
        return max(1, int(self.most * self.share + 1e-6))  # 100 * 0.29 is 28.999999999999996

    @property
    def last_places(self) -> int:
        """How many of all are for keys that have none."""
        return int(self.most * NEW_KEY_SHARE)


@dataclass(slots=True)
class _Usage:
    """What a key has asked for lately, and when it made the first request of the last minute and day."""

    minute_since_ms: int
    day_since_ms: int
    unfinished: int = 0
    last_minute: int = 0
    pixels: int = 0
    kept_bytes: int = 0
    work: int = 0


@dataclass(slots=True)
class Admission:
    """What a transaction has read, and what it will write."""

    now: int
    unfinished: int
    serving: int | None
    virtual_starts: dict[str, int]
    usage: dict[str, _Usage]
    known_keys: frozenset[str]
    made: dict[tuple[str, str], tuple[str, Prediction]] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    predictions: list[Prediction] = field(default_factory=list)
    repeats: list[dict[str, object]] = field(default_factory=list)

    @classmethod
    async def opened(cls, database: Database, connection: AsyncConnection, batch: Sequence[NewTask]) -> Admission:
        """Read all that limits and turns need."""
        now = database.now_ms()
        key_ids = {asked.key.id for asked in batch}
        unfinished: dict[str, int] = {}
        virtual_start: dict[str, int] = {}
        found = await connection.execute(_COUNTS_AND_TURNS, {"key_ids": [*key_ids, VIRTUAL_TIME]})
        for is_count, key_id, number in found:
            (unfinished if is_count else virtual_start)[key_id] = number
        usage = {key_id: _Usage(now, now, unfinished.get(key_id, 0)) for key_id in key_ids}
        limits = {asked.key.id: asked.key.limits for asked in batch}
        await _add_usage(connection, usage, limits, now)
        by_bytes = [key_id for key_id, may in limits.items() if may.bytes_max]
        for key_id, kept in (await uploads.stored_bytes(database, connection, by_bytes)).items():
            usage[key_id].kept_bytes = kept
        known = frozenset(virtual_start)
        gone = await uploads.withdrawn(connection, {name for asked in batch for name in _uploads_of(asked.submission)})
        return cls(
            now, sum(unfinished.values()), virtual_start.pop(VIRTUAL_TIME, None), virtual_start, usage, known, gone=gone
        )

    async def look_for_repeats(self, connection: AsyncConnection, batch: Sequence[NewTask]) -> None:
        """Read what the batch's Idempotency-Keys have made."""
        self.made = await _made(connection, batch, self.now)

    def existing(self, asked: NewTask) -> Prediction | None:
        """Find the task that the same request has made. Raises Conflict."""
        if asked.idempotency is None:
            return None
        found = self.made.get((asked.key.id, asked.idempotency.idempotency_key))
        if found is None:
            return None
        body_hash, prediction = found
        if body_hash != asked.idempotency.body_hash:
            raise Conflict(
                f"Idempotency-Key {asked.idempotency.idempotency_key!r:.100} was sent with another request in the last 24 "
                "hours; accepted: the same request again, or a new key"
            )
        return prediction

    def expect(self, expected: Mapping[str, int]) -> None:
        """Count tasks that may come, by the ids of their keys, as if they were here."""
        self.unfinished += sum(expected.values())
        for key_id, count in expected.items():
            if usage := self.usage.get(key_id):
                usage.unfinished += count
                usage.last_minute += count

    def check(self, asked: NewTask, queue: QueueLimits) -> None:
        """Raise Forbidden where the key may never have such a task, TooMany where it may not now, InvalidInput."""
        usage, may = self.usage[asked.key.id], asked.key.limits
        _check_task(asked, may)
        if asked.refusal is None:
            self._check_queue(usage, queue)
            if not self.gone.isdisjoint(_uploads_of(asked.submission)):
                raise uploads.gone_error()
        self._check_usage(asked, usage, may)

    def take(self, asked: NewTask, queue: QueueLimits) -> Prediction:
        """Make a task. Raises Forbidden, TooMany, and InvalidInput when an upload is no longer there."""
        self.check(asked, queue)
        usage, prediction = self.usage[asked.key.id], self._made(asked)
        self.predictions.append(prediction)
        if asked.refusal is None:
            self.unfinished += 1
            usage.unfinished += 1
            usage.pixels += prediction.pixels
            usage.work += prediction.work
        usage.last_minute += 1
        if asked.idempotency is not None:
            key = (asked.key.id, asked.idempotency.idempotency_key)
            self.made[key] = asked.idempotency.body_hash, prediction
            row = dataclasses.asdict(asked.idempotency) | {"key_id": asked.key.id, "prediction_id": prediction.id}
            self.repeats.append(row | {"created_ms": self.now})
        return prediction

    async def close(self, connection: AsyncConnection) -> None:
        """Write what was made."""
        if not self.predictions:
            return
        await connection.execute(_TASKS_MADE, [prediction.to_row() for prediction in self.predictions])
        await uploads.mark_used(connection, {name for p in self.predictions for name in _uploads_of(p.input)}, self.now)
        owed = [(p.id, p.key_id, p.webhook) for p in self.predictions if p.status.final and p.webhook]
        await outbox.add(connection, owed, self.now)
        if self.repeats:
            await connection.execute(_REPEATS_MADE, self.repeats)
        virtual_starts = dict(self.virtual_starts) | ({VIRTUAL_TIME: 0} if self.serving is None else {})
        new = [
            {"key_id": key_id, "next": virtual_start}
            for key_id, virtual_start in virtual_starts.items()
            if key_id not in self.known_keys
        ]
        old = [
            {"id": key_id, "turn": virtual_start}
            for key_id, virtual_start in virtual_starts.items()
            if key_id in self.known_keys
        ]
        if new:
            await connection.execute(_KEYS_MADE, new)
        if old:
            await connection.execute(_TURNS_MOVED, old)

    def _check_queue(self, usage: _Usage, queue: QueueLimits) -> None:
        if self.unfinished >= queue.most:
            raise TooMany(f"{self.unfinished} tasks wait, as many as are allowed; try again later", RETRY_AFTER_S)
        if usage.unfinished >= queue.of_one_key:
            raise TooMany(
                f"{usage.unfinished} tasks of this key wait, its share of the queue; try again later", RETRY_AFTER_S
            )
        if usage.unfinished and self.unfinished >= queue.most - queue.last_places:
            raise TooMany(
                f"{self.unfinished} tasks wait, and the last {queue.last_places} places are for keys that have none; "
                "try again later",
                RETRY_AFTER_S,
            )

    def _check_usage(self, asked: NewTask, usage: _Usage, may: Limits) -> None:
        if may.requests_per_minute and usage.last_minute >= may.requests_per_minute:
            wait_s = _until(usage.minute_since_ms + MINUTE_MS, self.now)
            raise TooMany(f"this key may make {may.requests_per_minute} requests a minute; try again later", wait_s)
        if may.tasks_max and usage.unfinished >= may.tasks_max:
            raise TooMany(f"{usage.unfinished} tasks of this key are unfinished, as many as it may have", RETRY_AFTER_S)
        if may.pixels_per_day and usage.pixels + asked.submission.pixels > may.pixels_per_day:
            wait_s = _until(usage.day_since_ms + DAY_MS, self.now)
            raise TooMany(
                f"this key may draw {may.pixels_per_day} pixels a day, of which it has used {usage.pixels}", wait_s
            )
        if may.work_per_day and usage.work + asked.work > may.work_per_day:
            wait_s = _until(usage.day_since_ms + DAY_MS, self.now)
            raise TooMany(
                f"this key may use {may.work_per_day} pixel steps a day, of which it has used {usage.work}; this task "
                f"takes {asked.work}",
                wait_s,
            )
        uploads.check_bytes(may, usage.kept_bytes)

    def _made(self, asked: NewTask) -> Prediction:
        refusal, submission = asked.refusal, asked.submission
        virtual_start = max(self.virtual_starts.get(asked.key.id, 0), self.serving or 0)
        if refusal is None:
            self.virtual_starts[asked.key.id] = virtual_start + asked.work
        return Prediction(
            id=uuid.uuid4().hex,
            key_id=asked.key.id,
            model=asked.model,
            input=submission,
            output_name=draw_name(submission.output_format),
            status=Status.FAILED if refusal else Status.CREATED,
            code=refusal.code if refusal else 0,
            error=writable(refusal.message) if refusal else "",
            version="",
            nsfw=(),
            created_ms=self.now,
            started_ms=None,
            finished_ms=self.now if refusal else None,
            inference_ms=0,
            warnings=asked.warnings,
            attempt=0,
            workers_lost=0,
            pixels=0 if refusal else submission.pixels,
            work=0 if refusal else asked.work,
            virtual_start=virtual_start,
            base_url=asked.base_url,
            webhook=asked.webhook,
            step=0,
            steps=0,
        )


def _uploads_of(submission: ImageRequest) -> list[str]:
    """Name the files that a task starts from."""
    return [name for name in (submission.image, submission.mask) if isinstance(name, str)]


async def _add_usage(
    connection: AsyncConnection, usage: Mapping[str, _Usage], limits: Mapping[str, Limits], now: int
) -> None:
    """Count what keys with limits have asked for lately, deleted and cancelled tasks included."""
    by_minute = [key_id for key_id, may in limits.items() if may.requests_per_minute]
    if by_minute:
        requests = sa.select(P.c.key_id, sa.func.count(), sa.func.min(P.c.created_ms))
        for key_id, count, since in await connection.execute(_made_after(requests, by_minute, now - MINUTE_MS)):
            usage[key_id].last_minute, usage[key_id].minute_since_ms = count, since
    by_day = [key_id for key_id, may in limits.items() if may.pixels_per_day or may.work_per_day]
    if by_day:
        sums = sa.select(P.c.key_id, sa.func.sum(P.c.pixels), sa.func.sum(P.c.work), sa.func.min(P.c.created_ms))
        for key_id, pixels, work, since in await connection.execute(_made_after(sums, by_day, now - DAY_MS)):
            of_key = usage[key_id]
            of_key.pixels, of_key.work, of_key.day_since_ms = int(pixels), int(work), since


def _check_task(asked: NewTask, may: Limits) -> None:
    """Raise Forbidden where a task is larger than its key may ever have."""
    said, steps = asked.submission, asked.submission.steps_of(asked.model)
    pixels = said.size.width * said.size.height
    if may.steps_max and steps > may.steps_max:
        own = "" if said.steps else ", the model's own number"
        raise Forbidden(
            f"num_inference_steps is {steps}{own}; accepted from this key: up to {may.steps_max}",
            field="num_inference_steps",
        )
    if may.pixels_max and pixels > may.pixels_max:
        raise Forbidden(
            f"size is {said.size}, {pixels} pixels; accepted from this key: up to {may.pixels_max} pixels", field="size"
        )
    if may.images_max and said.num_images > may.images_max:
        raise Forbidden(
            f"num_images is {said.num_images}; accepted from this key: up to {may.images_max}", field="num_images"
        )
    if may.pixels_per_day and said.pixels > may.pixels_per_day:
        raise Forbidden(f"the task has {said.pixels} pixels; accepted from this key: up to {may.pixels_per_day} a day")
    if may.work_per_day and asked.work > may.work_per_day:
        raise Forbidden(
            f"the task takes {asked.work} pixel steps; accepted from this key: up to {may.work_per_day} a day"
        )


def _made_after(sums: sa.Select[Any], key_ids: Sequence[str], after_ms: int) -> sa.Select[Any]:
    return sums.where(P.c.key_id.in_(key_ids), P.c.created_ms > after_ms).group_by(P.c.key_id)


async def _made(
    connection: AsyncConnection, batch: Sequence[NewTask], now: int
) -> dict[tuple[str, str], tuple[str, Prediction]]:
    """What the batch's Idempotency-Keys have made, with the digest of the request that did; forgets old ones."""
    asked = [(a.key.id, a.idempotency.idempotency_key) for a in batch if a.idempotency]
    if not asked:
        return {}
    await connection.execute(
        sa.delete(IDEMPOTENCY_RECORDS).where(IDEMPOTENCY_RECORDS.c.created_ms <= now - IDEMPOTENCY_MS)
    )
    name = sa.tuple_(IDEMPOTENCY_RECORDS.c.key_id, IDEMPOTENCY_RECORDS.c.idempotency_key)
    wanted = (
        sa.select(IDEMPOTENCY_RECORDS.c.idempotency_key, IDEMPOTENCY_RECORDS.c.body_hash, *COLUMNS)
        .join(P, P.c.id == IDEMPOTENCY_RECORDS.c.prediction_id)
        .where(name.in_(asked))
    )
    found = {}
    for row in await connection.execute(wanted):
        prediction = Prediction.of_row(row[2:])
        found[prediction.key_id, row.idempotency_key] = row.body_hash, prediction
    return found


def _until(then_ms: int, now: int) -> int:
    """Whole seconds, at least one."""
    return max(1, -(-(then_ms - now) // 1000))
