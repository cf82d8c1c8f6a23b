"""Taking tasks in: once `submit` returns, the task will be drawn, whatever dies.

Whatever is asked for while a transaction commits is taken in by the next one, all of it together: a disk that syncs 300
times a second then acknowledges many more tasks than 300. Counting and writing are one transaction, and there is one at
a time, so that limits are exact and an Idempotency-Key makes one task, from however many processes it comes at once.

**Fair sharing.** Each task gets a *turn*, and the smallest is served first. A key's next task begins its turn where
its last one's ended (`turn + work`), but never before the turn that is being served: so a key with a thousand tasks
does not hold up another's first, and nobody saves up turns by waiting. (Start-time fair queueing: Goyal, Vin and Cheng
1996.)
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.errors import Conflict, HiDreamError, InvalidInput, PromptRefused, StoreUnavailable, TooMany
from hidream.store import deliveries, uploads
from hidream.store.database import Database
from hidream.store.keys import Key, Limits
from hidream.store.prediction import COLUMNS, Prediction, writable
from hidream.store.predictions import SERVING
from hidream.store.schema import PREDICTIONS as P
from hidream.store.schema import REPEATS, TURNS
from hidream.store.submission import Submission
from hidream.types import Status

RETRY_AFTER_S = 5
"""What a client that finds the queue full is told to wait."""
TOGETHER_MAX = 100
"""Tasks that are taken in by one transaction; more would let the first of them wait for the last."""
MINUTE_MS, DAY_MS = 60_000, 86_400_000
REMEMBERED_MS = DAY_MS
"""How long an Idempotency-Key is remembered."""

_UNFINISHED = [status for status in Status if not status.final]


@dataclass(frozen=True, slots=True)
class Repeat:
    """What tells that a request was sent before: the client's Idempotency-Key, and a digest of the request."""

    idempotency_key: str
    body_hash: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A task to be taken in; one with a `refusal` is written down as failed.

    `warnings` are what its user should know already; whatever the worker has to add follows them.
    """

    key: Key
    model: str
    submission: Submission
    base_url: str = ""
    webhook: str = ""
    repeat: Repeat | None = None
    refusal: PromptRefused | None = None
    warnings: tuple[str, ...] = ()


Answer = Prediction | HiDreamError


class Intake:
    """One process's way to take tasks in; `queue_max` unfinished tasks of all keys are the most."""

    def __init__(self, database: Database, queue_max: int) -> None:
        self._database = database
        self._queue_max = queue_max
        self._waiting: list[tuple[Asked, asyncio.Future[Prediction]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def submit(self, asked: Asked) -> Prediction:
        """Take a task in, or find the one that the same request has made before.

        Raises TooMany, Conflict when an Idempotency-Key came with another request, or StoreUnavailable.
        """
        answer: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, answer))
        if self._writing is None or self._writing.done():
            self._writing = self._database.beside(self._write())
        return await answer

    async def repeated(self, asked: Asked) -> Prediction | None:
        """Find the task that the same request has made; None if there is none, or `submit` must say what is wrong."""
        if asked.repeat is None:
            return None
        wanted = (
            sa.select(*COLUMNS)
            .join(REPEATS, P.c.id == REPEATS.c.prediction_id)
            .where(REPEATS.c.key_id == asked.key.id, REPEATS.c.idempotency_key == asked.repeat.idempotency_key)
            .where(REPEATS.c.body_hash == asked.repeat.body_hash)
            .where(REPEATS.c.created_ms > self._database.now_ms() - REMEMBERED_MS)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(wanted)).first()
        return Prediction.of_row(row) if row else None

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:TOGETHER_MAX], self._waiting[TOGETHER_MAX:]
            answers = await self._answers([asked for asked, _ in batch])
            if all(isinstance(answer, StoreUnavailable) for answer in answers):  # those behind have waited as long
                batch, self._waiting = batch + self._waiting, []
                answers += [answers[0]] * (len(batch) - len(answers))
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # its client has gone
                    continue
                if isinstance(answer, Prediction):
                    future.set_result(answer)
                else:
                    future.set_exception(answer)

    async def _answers(self, batch: Sequence[Asked]) -> list[Answer | Exception]:
        try:
            async with self._database.write(alone=True) as connection:
                return await self._take(batch, connection)
        except StoreUnavailable as error:
            return [error] * len(batch)
        except Exception as error:  # the edge of a transaction: nothing of it was written
            if len(batch) == 1:
                return [error]
        return [answer for asked in batch for answer in await self._answers([asked])]  # one spoils none of the others

    async def _take(self, batch: Sequence[Asked], connection: AsyncConnection) -> list[Answer | Exception]:
        now = self._database.now_ms()
        books = await _Books.opened(connection, batch, now)
        answers: list[Answer | Exception] = []
        for asked in batch:
            try:
                answers.append(books.repeated(asked) or books.take(asked, self._queue_max))
            except (TooMany, Conflict, InvalidInput) as error:
                answers.append(error)
        await books.close(connection)
        return answers


@dataclass(slots=True)
class _Usage:
    """What a key has asked for lately, and when it made the first request of the last minute and day."""

    minute_since_ms: int
    day_since_ms: int
    unfinished: int = 0
    last_minute: int = 0
    pixels: int = 0
    kept_bytes: int = 0


@dataclass(slots=True)
class _Books:
    """What a transaction knows and will write: one query of each kind, however many tasks it takes in."""

    now: int
    unfinished: int
    serving: int | None
    turns: dict[str, int]
    usage: dict[str, _Usage]
    made: dict[tuple[str, str], tuple[str, Prediction]]
    known_keys: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    predictions: list[Prediction] = field(default_factory=list)
    repeats: list[dict[str, object]] = field(default_factory=list)

    @classmethod
    async def opened(cls, connection: AsyncConnection, batch: Sequence[Asked], now: int) -> _Books:
        """Read all that the batch needs."""
        key_ids = {asked.key.id for asked in batch}
        counts = sa.select(P.c.key_id, sa.func.count().label("tasks")).where(P.c.status.in_(_UNFINISHED))
        rows = await connection.execute(counts.group_by(P.c.key_id))
        unfinished = {row.key_id: row.tasks for row in rows}
        turns = sa.select(TURNS.c.key_id, TURNS.c.next).where(TURNS.c.key_id.in_({*key_ids, SERVING}))
        turn = {row.key_id: row.next for row in await connection.execute(turns)}
        usage = {key_id: _Usage(now, now, unfinished.get(key_id, 0)) for key_id in key_ids}
        await _add_usage(connection, usage, {asked.key.id: asked.key.limits for asked in batch}, now)
        made = await _made(connection, batch, now)
        known = frozenset(turn)
        gone = await uploads.withdrawn(connection, {name for asked in batch for name in _uploads_of(asked.submission)})
        return cls(now, sum(unfinished.values()), turn.pop(SERVING, None), turn, usage, made, known, gone)

    def repeated(self, asked: Asked) -> Prediction | None:
        """Find the task that the same request has made. Raises Conflict."""
        if asked.repeat is None:
            return None
        found = self.made.get((asked.key.id, asked.repeat.idempotency_key))
        if found is None:
            return None
        body_hash, prediction = found
        if body_hash != asked.repeat.body_hash:
            raise Conflict(
                f"Idempotency-Key {asked.repeat.idempotency_key!r:.100} was sent with another request in the last 24 "
                "hours; accepted: the same request again, or a new key"
            )
        return prediction

    def take(self, asked: Asked, queue_max: int) -> Prediction:
        """Make a task. Raises TooMany."""
        usage = self.usage[asked.key.id]
        if asked.refusal is None and self.unfinished >= queue_max:
            raise TooMany(f"{self.unfinished} tasks wait, as many as are allowed; try again later", RETRY_AFTER_S)
        self._check_limits(asked, usage)
        if asked.refusal is None and not self.gone.isdisjoint(_uploads_of(asked.submission)):
            raise uploads.gone()
        prediction = self._made(asked)
        self.predictions.append(prediction)
        if asked.refusal is None:
            self.unfinished += 1
            usage.unfinished += 1
            usage.pixels += prediction.pixels
        usage.last_minute += 1
        if asked.repeat is not None:
            key = (asked.key.id, asked.repeat.idempotency_key)
            self.made[key] = asked.repeat.body_hash, prediction
            row = dataclasses.asdict(asked.repeat) | {"key_id": asked.key.id, "prediction_id": prediction.id}
            self.repeats.append(row | {"created_ms": self.now})
        return prediction

    async def close(self, connection: AsyncConnection) -> None:
        """Write what was made."""
        if not self.predictions:
            return
        await connection.execute(sa.insert(P), [prediction.to_row() for prediction in self.predictions])
        await uploads.use(connection, {name for p in self.predictions for name in _uploads_of(p.input)}, self.now)
        owed = [(p.id, p.key_id, p.webhook) for p in self.predictions if p.status.final and p.webhook]
        await deliveries.owe(connection, owed, self.now)
        if self.repeats:
            await connection.execute(sa.insert(REPEATS), self.repeats)
        turns = dict(self.turns) | ({SERVING: 0} if self.serving is None else {})
        new = [{"key_id": key_id, "next": turn} for key_id, turn in turns.items() if key_id not in self.known_keys]
        old = [{"id": key_id, "turn": turn} for key_id, turn in turns.items() if key_id in self.known_keys]
        if new:
            await connection.execute(sa.insert(TURNS), new)
        if old:
            moved = sa.update(TURNS).where(TURNS.c.key_id == sa.bindparam("id")).values(next=sa.bindparam("turn"))
            await connection.execute(moved, old)

    def _check_limits(self, asked: Asked, usage: _Usage) -> None:
        may = asked.key.limits
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

        uploads.check_bytes(may, usage.kept_bytes)

    def _made(self, asked: Asked) -> Prediction:
        refusal, submission = asked.refusal, asked.submission
        turn = max(self.turns.get(asked.key.id, 0), self.serving or 0)
        if refusal is None:
            self.turns[asked.key.id] = turn + submission.work
        return Prediction(
            id=uuid.uuid4().hex,
            key_id=asked.key.id,
            model=asked.model,
            input=submission,
            output_name=f"{secrets.token_urlsafe(32)}.{submission.output_format}",
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
            work=submission.work,
            turn=turn,
            base_url=asked.base_url,
            webhook=asked.webhook,
            step=0,
            steps=0,
        )


def _uploads_of(submission: Submission) -> list[str]:
    """Name the files that a task starts from."""
    return [name for name in (submission.image, submission.mask) if name]


async def _add_usage(
    connection: AsyncConnection, usage: Mapping[str, _Usage], limits: Mapping[str, Limits], now: int
) -> None:
    """Count what keys with limits have asked for lately, deleted and cancelled tasks included."""
    by_minute = [key_id for key_id, may in limits.items() if may.requests_per_minute]
    if by_minute:
        requests = sa.select(P.c.key_id, sa.func.count(), sa.func.min(P.c.created_ms))
        for key_id, count, since in await connection.execute(_made_after(requests, by_minute, now - MINUTE_MS)):
            usage[key_id].last_minute, usage[key_id].minute_since_ms = count, since
    by_day = [key_id for key_id, may in limits.items() if may.pixels_per_day]
    if by_day:
        pixels = sa.select(P.c.key_id, sa.func.sum(P.c.pixels), sa.func.min(P.c.created_ms))
        for key_id, total, since in await connection.execute(_made_after(pixels, by_day, now - DAY_MS)):
            usage[key_id].pixels, usage[key_id].day_since_ms = int(total), since
    by_bytes = [key_id for key_id, may in limits.items() if may.bytes_max]
    if by_bytes:
        for key_id, kept in (await uploads.kept_bytes(connection, by_bytes)).items():
            usage[key_id].kept_bytes = kept


def _made_after(sums: sa.Select[Any], key_ids: Sequence[str], after_ms: int) -> sa.Select[Any]:
    return sums.where(P.c.key_id.in_(key_ids), P.c.created_ms > after_ms).group_by(P.c.key_id)


async def _made(
    connection: AsyncConnection, batch: Sequence[Asked], now: int
) -> dict[tuple[str, str], tuple[str, Prediction]]:
    """What the batch's Idempotency-Keys have made, with the digest of the request that did; forgets old ones."""
    asked = [(a.key.id, a.repeat.idempotency_key) for a in batch if a.repeat]
    if not asked:
        return {}
    await connection.execute(sa.delete(REPEATS).where(REPEATS.c.created_ms <= now - REMEMBERED_MS))
    name = sa.tuple_(REPEATS.c.key_id, REPEATS.c.idempotency_key)
    wanted = (
        sa.select(REPEATS.c.idempotency_key, REPEATS.c.body_hash, *COLUMNS)
        .join(P, P.c.id == REPEATS.c.prediction_id)
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
