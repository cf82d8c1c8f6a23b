"""Waiting for the end of tasks: all waiters are notified at once, without a further query for each."""

import asyncio
import functools

import sqlalchemy as sa
from store_calls import claim_one, new_key, no_statements, submit

from hidream.errors import PromptRefused
from hidream.store import predictions
from hidream.store.completion_waiter import CompletionWaiter
from hidream.store.database import Database
from hidream.store.schema import PREDICTIONS
from hidream.types import Status


async def draw(database):
    assert await predictions.complete(database, await claim_one(database), [False], 1)


async def somebody_waits(database):
    """Begin to wait for a new task: the question, and the wait."""
    task = await submit(database, await new_key(database))
    settled = functools.partial(CompletionWaiter(database).wait, task.id, task.key_id, 300)
    waiting = asyncio.create_task(settled())
    await asyncio.sleep(0.05)
    return settled, waiting


async def test_everybody_who_waits_is_told(database):
    completion_waiter = CompletionWaiter(database)
    key = await new_key(database)
    first, second = await submit(database, key), await submit(database, key)
    waiting = [asyncio.create_task(completion_waiter.wait(p.id, p.key_id, 300)) for p in (first, second) * 10]
    await draw(database)
    await draw(database)
    async with asyncio.timeout(60):
        assert {(await task).status for task in waiting} == {Status.COMPLETED}


async def test_it_does_not_wait_for_ever_nor_for_what_is_over(database):
    completion_waiter = CompletionWaiter(database)
    key = await new_key(database)
    waiting = await submit(database, key)
    assert (await completion_waiter.wait(waiting.id, waiting.key_id, 0.05)).status is Status.CREATED
    assert (await completion_waiter.wait(waiting.id, waiting.key_id, 0)).status is Status.CREATED
    over = await submit(database, key, refusal=PromptRefused("no"))
    async with asyncio.timeout(60):
        assert await completion_waiter.wait(over.id, over.key_id, 300) == over
        assert await completion_waiter.wait(waiting.id, "another key", 300) is None
        assert await completion_waiter.wait("0" * 32, waiting.key_id, 300) is None


async def test_what_is_deleted_while_somebody_waits_is_not_there(database):
    _, waiting = await somebody_waits(database)
    async with database.write() as connection:  # ended and deleted at once, so that nobody sees the end alone
        await connection.execute(sa.update(PREDICTIONS).values(status=Status.DELETED))
    async with asyncio.timeout(60):
        assert await waiting is None


async def test_it_ends_when_the_process_is_about_to_leave(database):
    settled, waiting = await somebody_waits(database)
    database.changes.stop()
    async with asyncio.timeout(60):
        assert (await waiting).status is Status.CREATED
        assert (await settled()).status is Status.CREATED


async def test_a_change_asks_one_question_for_all(monkeypatch, url, clock):
    monkeypatch.setattr("hidream.store.completion_waiter.POLL_S", 60.0)  # until then only a change makes it ask

    async with Database.open(url, clock) as database:
        completion_waiter = CompletionWaiter(database)
        prediction = await submit(database, await new_key(database))
        statements, backend = [], database._backend
        for engine in {engine.sync_engine.pool: engine for engine in (backend.reader, backend.writer)}.values():
            sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        waiting = [
            asyncio.create_task(completion_waiter.wait(prediction.id, prediction.key_id, 300)) for _ in range(50)
        ]
        while len(statements) < 51:
            await asyncio.sleep(0.001)
        await no_statements(statements)
        async with database.write() as connection:  # SQLite would not call the same values a change
            await connection.execute(sa.update(PREDICTIONS).values(error="none yet"))
        while not any("status IN" in statement for statement in statements):
            await asyncio.sleep(0.001)
        assert len(statements) <= 4, "begin or announce, update, and the watcher's question"
        await draw(database)
        await asyncio.gather(*waiting)
        database.changes.stop()  # or the watcher stays for a minute


async def test_nobody_watches_when_nobody_waits(database):
    completion_waiter = CompletionWaiter(database)
    prediction = await submit(database, await new_key(database))
    await completion_waiter.wait(prediction.id, prediction.key_id, 0.01)
    watcher = completion_waiter._watcher
    assert watcher is not None, "somebody has waited"
    async with asyncio.timeout(60):
        await watcher
