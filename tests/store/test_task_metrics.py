"""Metrics of tasks: each end is counted once, and waiting tasks are counted by kind, not by key."""

from dataclasses import replace

from store_calls import MODEL, OTHER, SUBMISSION, claim_one, new_key, submit

from hidream.errors import PromptRefused
from hidream.store import outbox, predictions, task_metrics
from hidream.store.task_metrics import FinishedFeed, SizeClass, UnfinishedCount
from hidream.types import Size, Status, Step

SMALL, LARGE = replace(SUBMISSION, size=Size(512, 512)), replace(SUBMISSION, size=Size(1024, 1024), num_images=2)


async def test_what_waits_and_what_is_drawn_is_counted(database, clock):
    key = await new_key(database)
    begun = database.now_ms()
    for submission in (SMALL, SMALL, SMALL, SUBMISSION, LARGE):
        await submit(database, key, submission)
        clock.now += 1
    await submit(database, key, LARGE, model=OTHER)
    await claim_one(database)
    assert sorted(await task_metrics.unfinished(database), key=str) == sorted(
        [
            UnfinishedCount(MODEL, Status.PROCESSING, SizeClass.SMALL, 1, begun),
            UnfinishedCount(MODEL, Status.CREATED, SizeClass.SMALL, 2, begun + 1000),
            UnfinishedCount(MODEL, Status.CREATED, SizeClass.MEDIUM, 1, begun + 3000),
            UnfinishedCount(MODEL, Status.CREATED, SizeClass.LARGE, 1, begun + 4000),
            UnfinishedCount(OTHER, Status.CREATED, SizeClass.LARGE, 1, begun + 5000),
        ],
        key=str,
    )


def test_the_classes_of_the_database_are_those_of_the_function():
    at = [512 * 512, 512 * 512 + 1, 1024 * 1024, 1024 * 1024 + 1]
    assert [SizeClass.of(pixels) for pixels in at] == ["512", "1024", "1024", "larger"]


async def test_each_end_is_told_once(database, clock):
    key = await new_key(database)
    await submit(database, key, refusal=PromptRefused("before"))
    clock.now += 1
    ends = FinishedFeed(database)
    assert await ends.read() == []
    _, _, cancelled = [await submit(database, key, LARGE) for _ in range(3)]
    clock.now += 10
    task = await claim_one(database)
    await predictions.report(database, "w1", {(task.id, task.attempt): Step(28, 28)})
    clock.now += 20
    await predictions.complete(database, task, [False, True], 19_000)
    (end,) = await ends.read()
    assert (end.model, end.status, end.code, end.size) == (MODEL, Status.COMPLETED, 0, SizeClass.LARGE)
    assert (end.waited_ms, end.inference_ms, end.total_ms, end.steps) == (10_000, 19_000, 30_000, 56)
    assert await ends.read() == []
    await predictions.fail(database, await claim_one(database), 1405, "no")
    await predictions.cancel(database, cancelled.id, key.id)
    await submit(database, key, refusal=PromptRefused("no"))
    assert {(end.status, end.code, end.waited_ms, end.steps) for end in await ends.read()} == {
        (Status.FAILED, 1405, 30_000, 0),
        (Status.CANCELLED, 0, None, 0),
        (Status.FAILED, 1200, None, 0),
    }
    clock.now += 3600
    assert await ends.read() == []


async def test_what_was_deleted_meanwhile_ended_nevertheless(database):
    ends = FinishedFeed(database)
    key = await new_key(database)
    tasks = [await submit(database, key) for _ in range(3)]
    await predictions.complete(database, await claim_one(database), [False], 5)
    await predictions.fail(database, await claim_one(database), 1405, "no")
    await predictions.cancel(database, tasks[2].id, key.id)
    assert len(await predictions.delete(database, [task.id for task in tasks], key.id)) == 3
    assert {end.status for end in await ends.read()} == {Status.COMPLETED, Status.FAILED, Status.CANCELLED}


async def test_webhooks_that_are_owed_are_counted(database):
    key = await new_key(database)
    for _ in range(2):
        await submit(database, key, webhook="https://example.org/", refusal=PromptRefused("no"))
    assert await task_metrics.pending_webhooks(database) == 2
    (claimed,) = await outbox.claim(database, 1, 60)
    await outbox.record_attempt(database, claimed, outbox.DeliveryState.DELIVERED, 200, "")
    assert await task_metrics.pending_webhooks(database) == 1


async def test_what_is_put_off_has_cost_no_attempt(database, clock):
    await submit(database, await new_key(database), webhook="https://example.org/", refusal=PromptRefused("no"))
    (claimed,) = await outbox.claim(database, 1, 60)
    assert claimed.attempts == 1
    await outbox.postpone(database, [claimed], 10)
    await outbox.postpone(database, [claimed], 10)  # it is no claim any more
    assert await outbox.claim(database, 1, 60) == []
    clock.now += 10
    (again,) = await outbox.claim(database, 1, 60)
    assert (again.id, again.attempts) == (claimed.id, 1)
