"""Watching running tasks: every watcher sees each change, without a further query for each."""

import asyncio
from dataclasses import replace

import pytest
import sqlalchemy as sa
from store_calls import SUBMISSION, claim_one, new_key, no_statements, submit

from hidream.errors import DatabaseUnavailable
from hidream.store import history, predictions
from hidream.store.database import Database
from hidream.store.progress import ProgressWatcher, TaskView, watch
from hidream.types import Status, Step


async def report(database, task, step, preview=None):
    return await predictions.report(database, "w1", {(task.id, task.attempt): Step(step, 28, preview)})


async def see(progress, id_, seen, wanted):
    """Wait for a view of which `wanted` is true."""
    async with asyncio.timeout(60):
        while not wanted(seen):
            seen = await progress.next_view(id_, seen, 5)
    return seen


async def test_a_task_is_seen_from_its_claim_to_its_end(database):
    progress = ProgressWatcher(database)
    prediction = await submit(database, await new_key(database))
    async with progress.watching(prediction.id):
        seen = await progress.next_view(prediction.id, None, 60)
        assert seen.prediction == prediction
        task = await claim_one(database)
        seen = await see(progress, prediction.id, seen, lambda v: v.prediction.status is Status.PROCESSING)
        assert seen.prediction.attempt == 1
        async with asyncio.timeout(60):
            while not (await report(database, task, 2)).pop().watched:  # until the watcher has asked for previews
                await asyncio.sleep(0.01)
        await report(database, task, 3, b"small image")
        seen = await see(progress, prediction.id, seen, lambda v: v.previewed)
        assert (seen.step, seen.previewed) == (Step(3, 28), Step(3, 28, b"small image"))
        await report(database, task, 4)
        seen = await see(progress, prediction.id, seen, lambda v: v.step.done == 4)
        assert seen.previewed.done == 3
        assert await predictions.complete(database, task, [False], 7)
        seen = await see(progress, prediction.id, seen, lambda v: v.prediction.status.final)
        assert seen.prediction == await history.get(database, prediction.id, prediction.key_id)


async def test_a_task_that_begins_again_begins_again(database):
    progress = ProgressWatcher(database)
    prediction = await submit(database, await new_key(database))
    async with progress.watching(prediction.id):
        task = await claim_one(database)
        await report(database, task, 9, b"old")
        seen = await see(progress, prediction.id, None, lambda v: v and v.previewed)
        await predictions.requeue(database, task)
        await claim_one(database)
        seen = await see(progress, prediction.id, seen, lambda v: v.prediction.attempt == 2)
        assert (seen.step.done, seen.prediction.status) == (0, Status.PROCESSING)


async def test_a_deleted_task_is_gone_for_those_who_watch(database):
    progress = ProgressWatcher(database)
    prediction = await submit(database, await new_key(database))
    async with progress.watching(prediction.id), progress.watching("0" * 32):
        assert await progress.next_view("0" * 32, TaskView.of(prediction), 60) is None
        await predictions.cancel(database, prediction.id, prediction.key_id)
        seen = await see(progress, prediction.id, None, lambda v: v and v.prediction.status.final)
        assert seen.prediction.status is Status.CANCELLED
    await predictions.delete(database, [prediction.id], prediction.key_id)
    async with progress.watching(prediction.id):
        assert await progress.next_view(prediction.id, seen, 60) is None


async def test_nothing_new_is_what_was_seen(database):
    progress = ProgressWatcher(database)
    prediction = await submit(database, await new_key(database))
    async with progress.watching(prediction.id):
        seen = await progress.next_view(prediction.id, None, 60)
        assert await progress.next_view(prediction.id, seen, 0.1) is seen
        waiting = asyncio.create_task(progress.next_view(prediction.id, seen, 300))
        await asyncio.sleep(0.05)
        database.changes.stop()
        async with asyncio.timeout(60):
            assert await waiting is seen
            assert progress.stopped


async def test_many_who_watch_cost_one_question_a_change(monkeypatch, url, clock):
    monkeypatch.setattr("hidream.store.progress.POLL_S", 60.0)  # until then only a change makes it look

    async with Database.open(url, clock) as database:
        progress = ProgressWatcher(database)
        key = await new_key(database)
        tasks = [await submit(database, key, replace(SUBMISSION, seed=seed)) for seed in range(5)]
        statements = []
        engine = database._backend.reader.sync_engine
        sa.event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

        async def follow(id_):
            async with progress.watching(id_):
                return await see(progress, id_, None, lambda v: v and v.step.done == 5)

        following = [asyncio.create_task(follow(task.id)) for task in tasks for _ in range(20)]
        claimed = [await claim_one(database) for _ in tasks]
        while len(progress._asked) < len(tasks):  # until it has seen that they are drawn
            await asyncio.sleep(0.01)
        await no_statements(statements)
        await predictions.report(database, "w1", {(task.id, 1): Step(5, 28) for task in claimed})
        await asyncio.gather(*following)
        asked = [statement for statement in statements if "previews" in statement]
        assert len(asked) <= 2, asked
        assert not progress._watched
        assert not progress._views


async def test_a_database_that_is_away_is_an_error_and_not_a_wait(database):
    progress = ProgressWatcher(database)
    prediction = await submit(database, await new_key(database))
    async with progress.watching(prediction.id):
        seen = await progress.next_view(prediction.id, None, 60)

        async def away():
            raise DatabaseUnavailable("away")

        progress._look = away
        with pytest.raises(DatabaseUnavailable):
            async with asyncio.timeout(60):
                await progress.next_view(prediction.id, seen, 300)


async def test_only_what_is_drawn_is_asked_for(database):
    key = await new_key(database)
    drawn, waiting = await submit(database, key), await submit(database, key)
    task = await claim_one(database)
    assert task.id == drawn.id
    await watch(database, [drawn.id, waiting.id], 30)
    await watch(database, [], 30)
    await claim_one(database)
    held = await predictions.renew(database, "w1", 15)
    assert {each.id for each in held if each.watched} == {drawn.id}
