"""Enqueueing tasks: once `submit` has returned, the task will be generated, whatever crashes.

Tasks that arrive while a transaction commits are enqueued together by the next one: so a disk that syncs 300 times a
second acknowledges many more than 300 tasks. Checking and writing happen in one exclusive transaction. So limits are
exact, and an Idempotency-Key creates one task, even when several processes receive it at once. `admission` says what
is checked and written.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.errors import Conflict, DatabaseUnavailable, Forbidden, HiDreamError, InvalidInput, TooMany
from hidream.store import uploads
from hidream.store.admission import IDEMPOTENCY_MS, Admission, NewTask, QueueLimits
from hidream.store.database import Database
from hidream.store.prediction import COLUMNS, Prediction
from hidream.store.schema import IDEMPOTENCY_RECORDS
from hidream.store.schema import PREDICTIONS as P

BATCH_MAX = 100
"""Tasks that one transaction enqueues; with more, the first would wait for the last."""
CHECKS_MAX = 3
"""How often a check reads at most, when tasks of the same key are enqueued at the same time."""

Outcome = Prediction | HiDreamError


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A task that waits for its transaction; `counted` if it is among the pending ones."""

    asked: NewTask
    counted: bool
    outcome: asyncio.Future[Prediction]


class Enqueuer:
    """One process's way to take tasks in, up to `queue_max` unfinished ones of all keys and `share` of that of one."""

    def __init__(self, database: Database, queue_max: int, share: float = 1.0) -> None:
        self._database = database
        self._queue = QueueLimits(queue_max, share)
        self._pending: Counter[str] = Counter()  # tasks whose files are being fetched, by key id
        self._ended: Counter[str] = Counter()  # how many of those have ended, kept while any are pending or checked
        self._checking = 0
        self._waiting: dict[str, deque[_Waiting]] = {}  # by key id; the first key is next
        self._writing: asyncio.Task[None] | None = None

    async def submit(self, asked: NewTask) -> Prediction:
        """Enqueue a task, or return the one that the same request has created before.

        Raises TooMany, Forbidden if the key may never have such a task, Conflict if the Idempotency-Key was sent with
        another request, and DatabaseUnavailable.
        """
        await uploads.prepare_sums(self._database, asked.key.id, asked.key.limits)
        return await self._submit(asked, counted=False)

    async def _submit(self, asked: NewTask, *, counted: bool) -> Prediction:
        outcome: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(asked.key.id, deque()).append(_Waiting(asked, counted, outcome))
        if self._writing is None or self._writing.done():
            self._writing = self._database.run_in_background(self._write())
        return await outcome

    async def submit_with(self, least: NewTask, prepare: Callable[[], Awaitable[NewTask]]) -> Prediction:
        """Call `prepare`, which fetches and stores a task's files, and enqueue the task that it returns.

        `least` is the task as far as it is known; if `submit` would refuse it, nothing is fetched. Pending tasks of
        this process count as unfinished, so that of thirty concurrent requests no more store files than will be
        enqueued. Raises what `submit` and `prepare` do.
        """
        key_id = least.key.id
        await self._check(least)
        self._pending[key_id] += 1
        try:
            asked = await prepare()
        except BaseException:
            self._end_pending(key_id)
            raise
        return await self._submit(asked, counted=True)

    async def _check(self, asked: NewTask) -> None:
        """Raise what `submit` would raise now; write nothing. `submit` checks again."""
        await uploads.prepare_sums(self._database, asked.key.id, asked.key.limits)
        self._checking += 1
        try:
            for _ in range(CHECKS_MAX):
                async with self._database.read() as connection:
                    ended = self._ended[asked.key.id]
                    admission = await Admission.load(self._database, connection, [asked])
                if ended == self._ended[asked.key.id]:  # else one was enqueued meanwhile, and may not be counted
                    break
        finally:
            self._checking -= 1
            self._forget_ended()
        admission.add_pending(self._pending)
        admission.check(asked, self._queue)

    def _end_pending(self, key_id: str) -> None:
        self._pending -= Counter((key_id,))
        self._ended[key_id] += 1
        self._forget_ended()

    def _forget_ended(self) -> None:
        if not (self._pending or self._checking):
            self._ended.clear()

    async def existing(self, asked: NewTask) -> Prediction | None:
        """Return what the same request has created; None if there is none, or `submit` must report an error."""
        if asked.idempotency is None:
            return None
        wanted = (
            sa.select(*COLUMNS)
            .join(IDEMPOTENCY_RECORDS, P.c.id == IDEMPOTENCY_RECORDS.c.prediction_id)
            .where(
                IDEMPOTENCY_RECORDS.c.key_id == asked.key.id,
                IDEMPOTENCY_RECORDS.c.idempotency_key == asked.idempotency.idempotency_key,
            )
            .where(IDEMPOTENCY_RECORDS.c.body_hash == asked.idempotency.body_hash)
            .where(IDEMPOTENCY_RECORDS.c.created_ms > self._database.now_ms() - IDEMPOTENCY_MS)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(wanted)).first()
        return Prediction.of_row(row) if row else None

    async def _write(self) -> None:
        while self._waiting:
            batch = self._next_batch()
            outcomes = await self._outcomes([waiting.asked for waiting in batch])
            if all(isinstance(outcome, DatabaseUnavailable) for outcome in outcomes):  # the others have waited as long
                batch += [waiting for line in self._waiting.values() for waiting in line]
                self._waiting.clear()
                outcomes += [outcomes[0]] * (len(batch) - len(outcomes))
            for waiting, outcome in zip(batch, outcomes, strict=True):
                if waiting.counted:
                    self._end_pending(waiting.asked.key.id)
                if waiting.outcome.done():  # its client has disconnected
                    continue
                if isinstance(outcome, Prediction):
                    waiting.outcome.set_result(outcome)
                else:
                    waiting.outcome.set_exception(outcome)

    def _next_batch(self) -> list[_Waiting]:
        """Remove the next batch, one task of each key at a time: many tasks of one key do not delay another key's."""
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < BATCH_MAX:
            key_id, line = next(iter(self._waiting.items()))
            del self._waiting[key_id]
            batch.append(line.popleft())
            if line:
                self._waiting[key_id] = line
        return batch

    async def _outcomes(self, batch: Sequence[NewTask]) -> list[Outcome | Exception]:
        try:
            async with self._database.write(exclusive=True) as connection:
                return await self._admit(batch, connection)
        except DatabaseUnavailable as error:
            return [error] * len(batch)
        except Exception as error:  # the edge of a transaction: nothing was written
            if len(batch) == 1:
                return [error]
        return [
            outcome for asked in batch for outcome in await self._outcomes([asked])
        ]  # one bad task does not fail the others

    async def _admit(self, batch: Sequence[NewTask], connection: AsyncConnection) -> list[Outcome | Exception]:
        admission = await Admission.load(self._database, connection, batch)
        await admission.load_idempotency(connection, batch)
        outcomes: list[Outcome | Exception] = []
        for asked in batch:
            try:
                outcomes.append(admission.existing(asked) or admission.admit(asked, self._queue))
            except (TooMany, Forbidden, Conflict, InvalidInput) as error:
                outcomes.append(error)
        await admission.write(connection)
        return outcomes
