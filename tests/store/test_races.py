"""Concurrent calls from two processes' connections: the result is as if one had come after the other."""

import asyncio

import pytest
from store_calls import MODEL, SUBMISSION, claim, claim_one, new_key, submit

from hidream.errors import TooMany
from hidream.store import history, outbox, predictions
from hidream.store.admission import IdempotencyRecord, NewTask
from hidream.store.database import Database
from hidream.store.enqueue import Enqueuer
from hidream.types import Status


@pytest.fixture
async def one(url, clock):
    async with Database.open(url, clock) as database:
        yield database


@pytest.fixture
async def two(url, clock):
    """The same database as `one`, opened again."""
    async with Database.open(url, clock) as database:
        yield database


async def all_of(database, key):
    return (await history.list_predictions(database, key.id, history.Query(page_size=1000)))[1]


async def test_64_equal_posts_make_one_task(one, two):
    key = await new_key(one, tasks_max=1)
    enqueuers = [Enqueuer(one, 1000), Enqueuer(two, 1000)]
    asked = NewTask(key, MODEL, SUBMISSION, idempotency=IdempotencyRecord("once", "hash"))
    answers = await asyncio.gather(*(enqueuers[i % 2].submit(asked) for i in range(64)))
    assert len({answer.id for answer in answers}) == 1
    assert len(await all_of(one, key)) == 1


async def test_64_equal_posts_one_by_one_make_one_task(one, two):
    key = await new_key(one)
    asked = NewTask(key, MODEL, SUBMISSION, idempotency=IdempotencyRecord("once", "hash"))
    answers = await asyncio.gather(*(Enqueuer((one, two)[i % 2], 1000).submit(asked) for i in range(64)))
    assert len({answer.id for answer in answers}) == 1


@pytest.mark.parametrize(
    ("limits", "queue_max"), [({"tasks_max": 5}, 1000), ({"requests_per_minute": 5}, 1000), ({}, 5)]
)
async def test_limits_are_exact(one, two, limits, queue_max):
    key = await new_key(one, **limits)
    made = (submit((one, two)[i % 2], key, queue_max=queue_max) for i in range(24))
    answers = await asyncio.gather(*made, return_exceptions=True)
    assert sum(isinstance(answer, TooMany) for answer in answers) == 19
    assert len(await all_of(one, key)) == 5


async def test_of_a_crowd_nobody_takes_more_than_its_share_nor_a_last_place(one, two):
    greedy, late = [await new_key(one) for _ in range(2)], [await new_key(one) for _ in range(3)]
    made = (submit((one, two)[i % 2], greedy[i // 40], queue_max=20, share=0.5) for i in range(80))
    answers = await asyncio.gather(*made, return_exceptions=True)
    assert sum(isinstance(answer, TooMany) for answer in answers) == 80 - 18
    assert max([len(await all_of(one, key)) for key in greedy]) <= 10
    first = (submit((one, two)[i % 2], late[i % 3], queue_max=20, share=0.5) for i in range(12))
    answers = await asyncio.gather(*first, return_exceptions=True)
    assert sum(isinstance(answer, TooMany) for answer in answers) == 10
    assert sorted([len(await all_of(one, key)) for key in late]) == [0, 1, 1]


async def test_no_two_workers_get_the_same_task(one, two):
    key, enqueuer = await new_key(one), Enqueuer(one, 1000)
    await asyncio.gather(*(enqueuer.submit(NewTask(key, MODEL, SUBMISSION)) for _ in range(60)))
    found = []

    async def work(worker):
        while tasks := await claim((one, two)[worker % 2], f"w{worker}", tasks=3):
            found.extend(task.id for task in tasks)

    await asyncio.gather(*map(work, range(8)))
    for worker in range(8):  # a claim may have passed over rows that another held for a moment
        await work(worker)
    assert len(found) == len(set(found)) == 60


async def test_of_cancelling_and_completing_one_wins(one, two):
    key = await new_key(one)
    for _ in range(20):
        prediction = await submit(one, key, webhook="https://hook")
        task = await claim_one(two)
        cancelled, completed = await asyncio.gather(
            predictions.cancel(one, prediction.id, key.id), predictions.complete(two, task, [False], 1)
        )
        assert cancelled != completed
        status = (await history.get(one, prediction.id, key.id)).status
        assert status is (Status.CANCELLED if cancelled else Status.COMPLETED)
        assert len(await outbox.list_deliveries(one, prediction.id, key.id)) == 1


async def test_of_recovering_and_completing_one_wins(one, two, clock):
    key = await new_key(one)
    for _ in range(20):
        prediction = await submit(one, key, webhook="https://hook")
        task = await claim_one(two, lease_s=5)
        clock.now += 6
        recovered, again, completed = await asyncio.gather(
            predictions.recover(one, 1), predictions.recover(two, 1), predictions.complete(two, task, [False], 1)
        )
        assert recovered + again + completed == 1
        status = (await history.get(one, prediction.id, key.id)).status
        assert status is (Status.COMPLETED if completed else Status.FAILED)
        assert len(await outbox.list_deliveries(one, prediction.id, key.id)) == 1


async def test_workers_and_sweepers_do_not_lock_each_other_out(one, two, clock):
    key, enqueuer = await new_key(one), Enqueuer(one, 1000)
    submitted = await asyncio.gather(*(enqueuer.submit(NewTask(key, MODEL, SUBMISSION)) for _ in range(40)))
    completed = []

    async def work(database, worker):
        for _ in range(15):
            for task in await claim(database, worker, lease_s=1, tasks=8):
                done = task.attempt % 3 == 0 and await predictions.complete(database, task, [False], 1)
                completed.extend([task.id] * done)
            await predictions.renew(database, worker, 1)
            clock.now += 0.6
            await predictions.recover(database, 1000, None)

    async with asyncio.timeout(60):
        await asyncio.gather(*(work((one, two)[i % 2], f"w{i}") for i in range(4)))
    assert completed, "some were recovered twice, and claimed a third time"
    states = {each.id: (await history.get(two, each.id, key.id)).status for each in submitted}
    assert sorted(completed) == sorted(id_ for id_, status in states.items() if status is Status.COMPLETED)


async def test_a_delivery_is_claimed_once_at_a_time(one, two):
    key, enqueuer = await new_key(one), Enqueuer(one, 1000)
    asked = NewTask(key, MODEL, SUBMISSION, webhook="https://hook")
    for prediction in await asyncio.gather(*(enqueuer.submit(asked) for _ in range(20))):
        await predictions.cancel(one, prediction.id, key.id)
    claimed = await asyncio.gather(*(outbox.claim((one, two)[i % 2], 4, 30) for i in range(10)))
    ids = [delivery.id for found in claimed for delivery in found]
    ids += [delivery.id for delivery in await outbox.claim(one, 100, 30)]
    assert len(ids) == len(set(ids)) == 20
