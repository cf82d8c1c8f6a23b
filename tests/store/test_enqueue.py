"""Enqueueing: an acknowledged task is stored, whatever clients come and go, and a repeated request is one task."""

import asyncio
import functools
import re

import pytest
import sqlalchemy as sa
from store_calls import MODEL, SUBMISSION, claim, claim_one, new_key, submit

from hidream.errors import Conflict, InvalidInput, PromptRefused, TooMany
from hidream.store import history
from hidream.store.admission import DAY_MS, IdempotencyRecord, NewTask
from hidream.store.enqueue import BATCH_MAX, Enqueuer
from hidream.store.schema import PREDICTIONS
from hidream.types import Status

IDEMPOTENCY = IdempotencyRecord("once", "hash")


async def test_what_was_submitted_is_what_is_read(database):
    key = await new_key(database)
    prediction = await submit(database, key, base_url="https://here", webhook="https://hook")
    assert await history.get(database, prediction.id, key.id) == prediction
    assert (prediction.input, prediction.base_url, prediction.webhook) == (
        SUBMISSION,
        "https://here",
        "https://hook",
    )
    assert (prediction.status, prediction.code, prediction.attempt) == (Status.CREATED, 0, 0)
    assert re.fullmatch("[0-9a-f]{32}", prediction.id)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}\.png", prediction.output_name)


async def test_what_would_be_refused_is_not_brought_and_nothing_is_written(database):
    key, other, enqueuer = await new_key(database, tasks_max=2), await new_key(database), Enqueuer(database, 10)
    begun, go_on = [], asyncio.Event()

    async def bring(asked):
        begun.append(asked.key)
        await go_on.wait()
        return asked

    def submit_with(owner):
        asked = NewTask(owner, MODEL, SUBMISSION)
        return asyncio.create_task(enqueuer.submit_with(asked, functools.partial(bring, asked)))

    bringing = [submit_with(owner) for owner in [key] * 30 + [other] * 4]
    while sum(task.done() for task in bringing) + len(begun) < 34:
        await asyncio.sleep(0.01)
    assert (begun.count(key), begun.count(other)) == (2, 4)
    go_on.set()
    bringing += [submit_with(key) for _ in range(10)]  # while the first are taken in
    answers = await asyncio.gather(*bringing, return_exceptions=True)
    assert sum(isinstance(answer, TooMany) for answer in answers) == 38
    assert len(begun) == 6
    assert not enqueuer._pending
    assert not enqueuer._ended
    async with database.read() as connection:
        assert (await connection.execute(sa.select(sa.func.count()).select_from(PREDICTIONS))).scalar() == 6


async def test_what_could_not_be_brought_takes_no_place(database):
    key, enqueuer = await new_key(database, tasks_max=1), Enqueuer(database, 10)
    asked = NewTask(key, MODEL, SUBMISSION)

    async def fail():
        raise InvalidInput("image is not an image")

    for _ in range(3):
        with pytest.raises(InvalidInput):
            await enqueuer.submit_with(asked, fail)
    assert not enqueuer._pending
    assert (await enqueuer.submit(asked)).status is Status.CREATED


async def test_a_crowd_of_one_key_does_not_hold_up_another_in_the_same_process(database):
    busy, late, enqueuer = await new_key(database), await new_key(database), Enqueuer(database, 1000)
    crowd = [asyncio.create_task(enqueuer.submit(NewTask(busy, MODEL, SUBMISSION))) for _ in range(500)]
    await asyncio.sleep(0)
    await enqueuer.submit(NewTask(late, MODEL, SUBMISSION))
    assert sum(task.done() for task in crowd) <= 2 * BATCH_MAX
    await asyncio.gather(*crowd)


async def test_a_refused_prompt_has_failed_and_is_never_claimed(database):
    key = await new_key(database)
    refused = await submit(database, key, refusal=PromptRefused("because"), queue_max=0)
    assert (refused.status, refused.code, refused.error) == (Status.FAILED, 1200, "because")
    assert refused.execution_ms == 0
    assert await history.get(database, refused.id, key.id) == refused
    assert await claim(database) == []


async def test_a_request_that_is_sent_again_is_the_same_task(database, clock):
    key, other = await new_key(database, requests_per_minute=1), await new_key(database)
    first = await submit(database, key, idempotency=IDEMPOTENCY)
    assert await submit(database, key, idempotency=IDEMPOTENCY, queue_max=0) == first
    with pytest.raises(Conflict, match="'once' was sent with another request"):
        await submit(database, key, idempotency=IdempotencyRecord("once", "other"))
    clock.now += 1
    assert (await submit(database, other, idempotency=IDEMPOTENCY)).id != first.id
    task = await claim_one(database)
    assert (await submit(database, key, idempotency=IDEMPOTENCY)).status is Status.PROCESSING
    assert task.id == first.id
    clock.now += DAY_MS / 1000 - 2
    assert (await submit(database, key, idempotency=IDEMPOTENCY)).id == first.id
    clock.now += 1
    assert (await submit(database, key, idempotency=IDEMPOTENCY)).id != first.id


async def test_a_repeated_request_is_found_before_it_is_read(database, clock):
    """By its key, its name and its body, for a day; all else is for `submit` to judge."""

    key, other, enqueuer = await new_key(database), await new_key(database), Enqueuer(database, 10)

    async def found(owner, idempotency):
        return await enqueuer.existing(NewTask(owner, MODEL, SUBMISSION, idempotency=idempotency))

    assert await found(key, IDEMPOTENCY) is None
    first = await submit(database, key, idempotency=IDEMPOTENCY)
    assert await found(key, IDEMPOTENCY) == first
    for owner, idempotency in (
        (other, IDEMPOTENCY),
        (key, IdempotencyRecord("once", "other")),
        (key, IdempotencyRecord("two", "hash")),
        (key, None),
    ):
        assert await found(owner, idempotency) is None
    clock.now += DAY_MS / 1000 - 1
    assert await found(key, IDEMPOTENCY) == first
    clock.now += 1
    assert await found(key, IDEMPOTENCY) is None


async def test_those_who_come_together_are_written_down_together(database):
    key, enqueuer = await new_key(database), Enqueuer(database, 100)
    transactions = []
    real = database.write

    def write(**how):
        transactions.append(how)
        return real(**how)

    database.write = write
    asked = NewTask(key, MODEL, SUBMISSION)
    made = await asyncio.gather(*(enqueuer.submit(asked) for _ in range(20)))
    assert len({prediction.id for prediction in made}) == 20
    assert len(transactions) < 5


async def test_what_cannot_be_written_spoils_nothing_else(database):
    key, enqueuer = await new_key(database), Enqueuer(database, 1000)
    asked = [NewTask(key, "m", SUBMISSION, webhook="\ud800" if i == 3 else "https://hook") for i in range(8)]
    answers = await asyncio.gather(*map(enqueuer.submit, asked), return_exceptions=True)
    assert [isinstance(answer, Exception) for answer in answers] == [i == 3 for i in range(8)]
    async with database.read() as connection:
        assert (await connection.execute(sa.select(sa.func.count()).select_from(PREDICTIONS))).scalar() == 7


async def test_who_goes_away_while_it_is_written_holds_up_nobody(database):
    key, enqueuer = await new_key(database), Enqueuer(database, 1000)
    asked = [asyncio.create_task(enqueuer.submit(NewTask(key, "m", SUBMISSION))) for _ in range(4)]
    await asyncio.sleep(0)
    asked[1].cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [False, True, False, False]
    assert await enqueuer.submit(NewTask(key, "m", SUBMISSION))
