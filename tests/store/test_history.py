"""Queries: each key sees its own tasks, newest first, and the position of waiting ones."""

import pytest
from store_calls import MODEL, OTHER, claim_one, new_key, submit

from hidream.store import history, predictions
from hidream.store.history import Query, QueuePosition
from hidream.types import Status


async def test_another_key_sees_nothing(database):
    mine, theirs = await new_key(database), await new_key(database)
    prediction = await submit(database, mine)
    assert await history.get(database, prediction.id, theirs.id) is None
    assert await history.get(database, "0" * 32, mine.id) is None
    assert await history.list_predictions(database, theirs.id, Query()) == (0, [])


async def test_ended_tells_those_that_have(database):
    key = await new_key(database)
    waiting, done = await submit(database, key), await submit(database, key)
    await predictions.cancel(database, done.id, key.id)
    assert (await history.finished(database, {waiting.id, done.id})).keys() == {done.id}
    assert await history.finished(database, []) == {}


async def test_a_list_has_pages_and_conditions(database, clock):
    key = await new_key(database)
    made = []
    for i in range(7):
        made.append(await submit(database, key, model=OTHER if i == 2 else MODEL))
        clock.now += 1
    await predictions.cancel(database, made[0].id, key.id)
    await predictions.delete(database, [made[0].id], key.id)
    await predictions.cancel(database, made[1].id, key.id)

    async def listed(**conditions):
        total, found = await history.list_predictions(database, key.id, Query(**conditions))
        return total, [made.index(next(m for m in made if m.id == p.id)) for p in found]

    assert await listed() == (6, [6, 5, 4, 3, 2, 1])
    assert await listed(page_size=4) == (6, [6, 5, 4, 3])
    assert await listed(page=2, page_size=4) == (6, [2, 1])
    assert await listed(page=3, page_size=4) == (6, [])
    assert await listed(model=OTHER) == (1, [2])
    assert await listed(status=Status.CANCELLED) == (1, [1])
    assert await listed(status=Status.DELETED) == (0, [])
    assert await listed(created_after_ms=made[4].created_ms) == (3, [6, 5, 4])
    assert await listed(created_after_ms=made[2].created_ms, created_before_ms=made[3].created_ms) == (2, [3, 2])


async def test_what_waits_has_a_place_and_when_work_was_done_a_time(database, clock):
    key = await new_key(database)
    tasks = []
    for _ in range(6):
        tasks.append(await submit(database, key))
        clock.now += 1
    await submit(database, key, model=OTHER)
    line = await history.queue_snapshot(database, tasks[0].model)
    assert [line.place(task) for task in tasks] == [QueuePosition(i, None) for i in range(6)]
    clock.now += 3600  # they were made long before the first is done
    for _ in range(2):
        task = await claim_one(database)
        clock.now += 10
        await predictions.complete(database, task, [False], 1)
    await claim_one(database)
    for i, task in enumerate(tasks[3:]):
        place = (await history.queue_snapshot(database, task.model)).place(task)
        assert place.before == i
        assert place.seconds == pytest.approx((i + 1.5) * 10), "those before, half of what is drawn, and itself"
    clock.now += history.RECENT_MS / 1000 + 1
    assert (await history.queue_snapshot(database, tasks[5].model)).place(tasks[5]).seconds is None, (
        "nobody knows any more"
    )


async def test_who_comes_since_the_line_was_seen_is_put_where_it_belongs(database, clock):
    busy, quiet = await new_key(database), await new_key(database)
    tasks = [await submit(database, busy) for _ in range(3)]
    line = await history.queue_snapshot(database, tasks[0].model)
    clock.now += 1
    last, first = await submit(database, busy), await submit(database, quiet)
    for _ in range(2):
        assert line.place(last).before in (3, 4), "once it is known that another one came, that one counts"
        assert line.place(first).before == 1, "behind the busy key's first"
    fresh = await history.queue_snapshot(database, tasks[0].model)
    assert [line.place(task) for task in (*tasks, last, first)] == [fresh.place(task) for task in (*tasks, last, first)]
