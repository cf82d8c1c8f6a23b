"""Admission: exact limits, a share of the queue for each key, and fair order."""

import asyncio
import dataclasses

import pytest
from store_calls import MODEL, OTHER, SUBMISSION, claim_one, new_key, submit

from hidream.errors import Forbidden, PromptRefused, TooMany
from hidream.store import history, keys, predictions, retention
from hidream.store.admission import IdempotencyRecord, NewTask, QueueLimits
from hidream.store.enqueue import Enqueuer
from hidream.types import USUAL_WORK, Size, Status

IDEMPOTENCY = IdempotencyRecord("once", "hash")


async def test_the_queue_has_an_end(database):
    key = await new_key(database)
    for _ in range(2):
        await submit(database, key, queue_max=2)
    with pytest.raises(TooMany, match="2 tasks wait") as caught:
        await submit(database, key, queue_max=2)
    assert caught.value.retry_after_s > 0
    task = await claim_one(database)
    with pytest.raises(TooMany):
        await submit(database, key, queue_max=2)
    await predictions.complete(database, task, [False], 1)
    await submit(database, key, queue_max=2)


async def test_a_key_has_its_share_of_the_queue_and_no_more(database):
    busy, other = await new_key(database), await new_key(database)
    for _ in range(5):
        await submit(database, busy, queue_max=10, share=0.5)
    with pytest.raises(TooMany, match="5 tasks of this key wait, its share of the queue"):
        await submit(database, busy, queue_max=10, share=0.5)
    for _ in range(4):
        await submit(database, other, queue_max=10, share=0.5)
    with pytest.raises(TooMany, match="9 tasks wait, and the last 1 places are for keys that have none") as caught:
        await submit(database, other, queue_max=10, share=0.5)
    assert caught.value.retry_after_s > 0
    late = [await new_key(database), await new_key(database)]
    await submit(database, late[0], queue_max=10, share=0.5)
    with pytest.raises(TooMany, match="10 tasks wait, as many as are allowed"):
        await submit(database, late[1], queue_max=10, share=0.5)
    refused = await submit(database, busy, queue_max=10, share=0.5, refusal=PromptRefused("no"))
    assert refused.status is Status.FAILED, "what is not drawn takes no place"


@pytest.mark.parametrize(
    ("queue", "tasks_max_per_key", "reserved"),
    [
        (QueueLimits(1000, 0.5), 500, 100),
        (QueueLimits(1000, 1.0), 1000, 100),
        (QueueLimits(100, 0.29), 29, 10),
        (QueueLimits(9, 0.5), 4, 0),
        (QueueLimits(1, 0.01), 1, 0),
        (QueueLimits(10**9, 1), 10**9, 10**8),
    ],
)
def test_shares_are_whole_tasks_and_at_least_one(queue, tasks_max_per_key, reserved):
    assert (queue.tasks_max_per_key, queue.reserved) == (tasks_max_per_key, reserved)


async def test_the_only_key_may_have_all_but_the_last_places(database):
    key = await new_key(database)
    for _ in range(9):
        await submit(database, key, queue_max=10)
    with pytest.raises(TooMany, match="the last 1 places"):
        await submit(database, key, queue_max=10)


@pytest.mark.parametrize(
    ("limits", "said", "words"),
    [
        ({"steps_max": 27}, {}, "num_inference_steps is 28, the model's own number; accepted from this key: up to 27"),
        ({"steps_max": 27}, {"steps": 30}, "num_inference_steps is 30; accepted from this key: up to 27"),
        ({"pixels_max": 512 * 767}, {}, "size is 512*768, 393216 pixels; accepted from this key: up to 392704 pixels"),
        ({"images_max": 2}, {"num_images": 3}, "num_images is 3; accepted from this key: up to 2"),
        ({"pixels_per_day": 512 * 768}, {"num_images": 2}, "the task has 786432 pixels; accepted from this key"),
        ({"work_per_day": 512 * 768 * 27}, {}, "the task takes 11010048 pixel steps; accepted from this key"),
    ],
)
async def test_what_a_key_may_never_have_is_forbidden_and_not_put_off(database, limits, said, words):
    key, task = await new_key(database, **limits), dataclasses.replace(SUBMISSION, **said)
    with pytest.raises(Forbidden) as caught:
        await submit(database, key, task, idempotency=IDEMPOTENCY)
    assert words in caught.value.message
    with pytest.raises(Forbidden):
        await Enqueuer(database, 10).submit_with(NewTask(key, MODEL, task), asyncio.Event().wait)
    small = dataclasses.replace(SUBMISSION, size=Size(256, 256), steps=4)
    assert (await submit(database, key, small, idempotency=IDEMPOTENCY)).status is Status.CREATED


async def test_a_key_may_use_so_much_work_a_day(database, clock):
    image = 512 * 768
    key = await new_key(database, work_per_day=image * (28 + 50))
    full = await submit(database, key, model=OTHER)
    assert full.work == image * 50, "the model's own steps"
    refused = await submit(database, key, refusal=PromptRefused("no"))
    assert refused.work == 0
    clock.now += 3600
    await predictions.cancel(database, (await submit(database, key)).id, key.id)
    with pytest.raises(TooMany, match="of which it has used 30670848; this task takes 11010048") as caught:
        await submit(database, key)
    assert caught.value.retry_after_s == 23 * 3600
    clock.now += 23 * 3600
    await submit(database, key)


async def test_a_thousand_tasks_of_one_key_leave_the_next_keys_first_one_accepted(database):
    busy, late, enqueuer = await new_key(database), await new_key(database), Enqueuer(database, 1000, 0.5)
    asked = (enqueuer.submit(NewTask(busy, MODEL, SUBMISSION)) for _ in range(1000))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, TooMany) for answer in answers) == 500
    assert (await enqueuer.submit(NewTask(late, MODEL, SUBMISSION))).status is Status.CREATED


async def test_a_key_may_make_so_many_requests_a_minute(database, clock):
    key = await new_key(database, requests_per_minute=3)
    await submit(database, key)
    clock.now += 20
    for _ in range(2):
        await submit(database, key, refusal=PromptRefused("no"))
    with pytest.raises(TooMany, match="3 requests a minute") as caught:
        await submit(database, key)
    assert caught.value.retry_after_s == 40
    clock.now += 40
    await submit(database, key)
    with pytest.raises(TooMany) as caught:
        await submit(database, key)
    assert caught.value.retry_after_s == 20
    await submit(database, await new_key(database))


async def test_what_waits_is_told_right_within_one_transaction(database):
    key, enqueuer = await new_key(database, requests_per_minute=2), Enqueuer(database, 1000)
    asked = [enqueuer.submit(NewTask(key, "m", SUBMISSION)) for _ in range(5)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, TooMany)]
    assert [answer.retry_after_s for answer in refused] == [60] * 3


async def test_a_key_may_have_so_many_tasks_at_once(database):
    key = await new_key(database, tasks_max=2)
    for _ in range(2):
        await submit(database, key)
    with pytest.raises(TooMany, match="2 tasks of this key are unfinished"):
        await submit(database, key)
    await predictions.complete(database, await claim_one(database), [False], 1)
    await submit(database, key)


async def test_a_key_may_draw_so_many_pixels_a_day_even_if_it_deletes_them(database, clock):
    small = dataclasses.replace(SUBMISSION, size=Size(512, 512))
    key = await new_key(database, pixels_per_day=3 * 512 * 512)
    made = [await submit(database, key, dataclasses.replace(small, num_images=2))]
    clock.now += 3600
    made.append(await submit(database, key, small))
    for prediction in made:
        await predictions.cancel(database, prediction.id, key.id)
    await predictions.delete(database, [prediction.id for prediction in made], key.id)
    await retention.purge(database, await retention.purgeable(database, 0))
    with pytest.raises(TooMany, match="pixels a day") as caught:
        await submit(database, key, small)
    assert caught.value.retry_after_s == 23 * 3600
    clock.now += 23 * 3600
    await submit(database, key, small)


async def test_one_key_with_many_tasks_does_not_hold_up_anothers_first(database, clock):
    busy, late, enqueuer = await new_key(database), await new_key(database), Enqueuer(database, 1000)
    await asyncio.gather(*(enqueuer.submit(NewTask(busy, "m", SUBMISSION)) for _ in range(300)))
    clock.now += 1
    first = await enqueuer.submit(NewTask(late, "m", SUBMISSION))
    assert (await history.queue_snapshot(database, first.model)).place(first).before <= 1


USUAL = dataclasses.replace(SUBMISSION, size=Size(1024, 1024), steps=28)
"""A task that is as much work as the head start of one level of priority."""


async def of_priority(database, clock, priority):
    """Make a key, and what submits a usual task of it, a millisecond after whatever was before."""
    key, _ = await keys.create(database, f"priority {priority}", priority=priority)

    async def give():
        clock.now += 0.001
        task = await submit(database, key, USUAL)
        assert (task.work, task.priority) == (USUAL_WORK, priority)
        return task

    return key, give


async def test_a_higher_priority_is_a_head_start_and_not_a_larger_share(database, clock):
    _, give_low = await of_priority(database, clock, -1)
    high, give_high = await of_priority(database, clock, 1)
    for give in (give_low, give_high):
        for _ in range(12):
            await give()
    claimed = [await claim_one(database) for _ in range(24)]
    order = "".join("H" if task.key_id == high.id else "L" for task in claimed)
    assert order == "HH" + 10 * "LH" + "LL", "two levels are two usual tasks; then they take turns"


@pytest.mark.parametrize(
    ("priorities", "waits"),
    [((0, 0), [1, 1, 1, 1]), ((0, 4), [5, 1, 1, 1]), ((-4, 4), [9, 4, 4, 4])],
)
async def test_whoever_has_a_lower_priority_waits_a_head_start_and_no_longer(database, clock, priorities, waits):
    """The tasks of a higher key, which always has ten waiting, that go before each one of a lower key."""
    (low, give_low), (_, give_high) = [await of_priority(database, clock, each) for each in priorities]
    for _ in range(10):
        await give_high()
    found = []
    for _ in waits:
        await give_low()
        found.append(0)
        while (await claim_one(database)).key_id != low.id:
            found[-1] += 1
            await give_high()
    assert found == waits


async def test_a_new_key_waits_for_no_more_than_the_head_start_of_a_key_that_has_used_it_up(database, clock):
    _, give_high = await of_priority(database, clock, 4)
    new, give_new = await of_priority(database, clock, 0)
    for _ in range(30):
        await give_high()
    for _ in range(10):
        await claim_one(database)
    await give_new()
    assert (await claim_one(database)).key_id == new.id
