"""Taking tasks in: once `submit` returns, the task will be drawn, whatever dies.

Whatever is asked for while a transaction commits is taken in by the next one, all of it together: a disk that syncs 300
times a second then acknowledges many more tasks than 300. Counting and writing are one transaction, and there is one at
a time, so that limits are exact and an Idempotency-Key makes one task, from however many processes it comes at once.
What is counted and written, `admission` says.
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
"""Tasks that are taken in by one transaction; more would let the first of them wait for the last."""
CHECKS_MAX = 3
"""How often a check looks at most, where tasks of the same key are taken in at the same time."""

Outcome = Prediction | HiDreamError


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A task that waits to be taken in, `brings` if it was counted before."""

    asked: NewTask
    brings: bool
    answer: asyncio.Future[Prediction]


class Enqueuer:
    """One process's way to take tasks in, up to `queue_max` unfinished ones of all keys and `share` of that of one."""

    def __init__(self, database: Database, queue_max: int, share: float = 1.0) -> None:
        self._database = database
        self._queue = QueueLimits(queue_max, share)
        self._brought: Counter[str] = Counter()  # tasks whose files are on their way, by the ids of their keys
        self._ended: Counter[str] = Counter()  # how many of them are no more, as long as there are any, or looks
        self._looking = 0
        self._waiting: dict[str, deque[_Waiting]] = {}  # of each key; the first key is next
        self._writing: asyncio.Task[None] | None = None

    async def submit(self, asked: NewTask) -> Prediction:
        """Take a task in, or find the one that the same request has made before.

        Raises TooMany, Forbidden where the key may never have such a task, Conflict when an Idempotency-Key came with
        another request, or DatabaseUnavailable.
        """
        await uploads.prepare_sums(self._database, asked.key.id, asked.key.limits)
        return await self._submit(asked, brings=False)

    async def _submit(self, asked: NewTask, *, brings: bool) -> Prediction:
        answer: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(asked.key.id, deque()).append(_Waiting(asked, brings, answer))
        if self._writing is None or self._writing.done():
            self._writing = self._database.run_in_background(self._write())
        return await answer

    async def submit_with(self, least: NewTask, bring: Callable[[], Awaitable[NewTask]]) -> Prediction:
        """Have `bring` fetch and keep what a task needs, and take it in, unless `submit` would refuse `least` of it.

        What is being brought in this process counts as unfinished meanwhile, so that of thirty requests at once no
        more keep files than are taken in. Raises what `submit` and `bring` do.
        """
        key_id = least.key.id
        await self._check(least)
        self._brought[key_id] += 1
        try:
            asked = await bring()
        except BaseException:
            self._bring_no_more(key_id)
            raise
        return await self._submit(asked, brings=True)

    async def _check(self, asked: NewTask) -> None:
        """Raise what `submit` would, which has the last word; nothing is written."""
        await uploads.prepare_sums(self._database, asked.key.id, asked.key.limits)
        self._looking += 1
        try:
            for _ in range(CHECKS_MAX):
                async with self._database.read() as connection:
                    ended = self._ended[asked.key.id]
                    admission = await Admission.opened(self._database, connection, [asked])
                if ended == self._ended[asked.key.id]:  # else one was taken in meanwhile, which it may have missed
                    break
        finally:
            self._looking -= 1
            self._forget_ended()
        admission.expect(self._brought)
        admission.check(asked, self._queue)

    def _bring_no_more(self, key_id: str) -> None:
        self._brought -= Counter((key_id,))
        self._ended[key_id] += 1
        self._forget_ended()

    def _forget_ended(self) -> None:
        if not (self._brought or self._looking):
            self._ended.clear()

    async def existing(self, asked: NewTask) -> Prediction | None:
        """Find the task that the same request has made; None if there is none, or `submit` must say what is wrong."""
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
            answers = await self._answers([waiting.asked for waiting in batch])
            if all(isinstance(answer, DatabaseUnavailable) for answer in answers):  # those behind have waited as long
                batch += [waiting for line in self._waiting.values() for waiting in line]
                self._waiting.clear()
                answers += [answers[0]] * (len(batch) - len(answers))
            for waiting, answer in zip(batch, answers, strict=True):
                if waiting.brings:
                    self._bring_no_more(waiting.asked.key.id)
                if waiting.answer.done():  # its client has gone
                    continue
                if isinstance(answer, Prediction):
                    waiting.answer.set_result(answer)
                else:
                    waiting.answer.set_exception(answer)

    def _next_batch(self) -> list[_Waiting]:
        """Take out who is next, the keys in turn: a crowd of one key's does not hold up another's."""
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < BATCH_MAX:
            key_id, line = next(iter(self._waiting.items()))
            del self._waiting[key_id]
            batch.append(line.popleft())
            if line:
                self._waiting[key_id] = line
        return batch

    async def _answers(self, batch: Sequence[NewTask]) -> list[Outcome | Exception]:
        try:
            async with self._database.write(exclusive=True) as connection:
                return await self._take(batch, connection)
        except DatabaseUnavailable as error:
            return [error] * len(batch)
        except Exception as error:  # the edge of a transaction: nothing of it was written
            if len(batch) == 1:
                return [error]
        return [answer for asked in batch for answer in await self._answers([asked])]  # one spoils none of the others

    async def _take(self, batch: Sequence[NewTask], connection: AsyncConnection) -> list[Outcome | Exception]:
        admission = await Admission.opened(self._database, connection, batch)
        await admission.look_for_repeats(connection, batch)
        answers: list[Outcome | Exception] = []
        for asked in batch:
            try:
                answers.append(admission.existing(asked) or admission.take(asked, self._queue))
            except (TooMany, Forbidden, Conflict, InvalidInput) as error:
                answers.append(error)
        await admission.close(connection)
        return answers
