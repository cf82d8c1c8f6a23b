"""Webhooks that are owed: claimed one after the other, again when their carrier dies, until it is settled."""

from asking import claim_one, new_key, submit

from hidream.errors import PromptRefused
from hidream.store import deliveries, history, predictions
from hidream.store.deliveries import State


async def owed(database, clock, count=1):
    """Tasks of one key that have ended a second apart, and the key."""
    key = await new_key(database)
    ended = []
    for _ in range(count):
        ended.append(await submit(database, key, webhook="https://hook", refusal=PromptRefused("no")))
        clock.now += 1
    return key, ended


def test_every_way_to_end_owes_one_and_only_if_one_was_asked_for(in_database, clock):
    async def scenario(database):
        key = await new_key(database)
        for hook in ("https://hook", ""):
            refused = await submit(database, key, webhook=hook, refusal=PromptRefused("no"))
            completed, failed, cancelled, lost = [await submit(database, key, webhook=hook) for _ in range(4)]
            await predictions.complete(database, await claim_one(database), [False], 1)
            await predictions.fail(database, await claim_one(database), 1405, "no")
            await predictions.cancel(database, (await claim_one(database)).id, key.id)
            await claim_one(database, "dead")
            await predictions.recover(database, 1, "dead")
            for prediction in (refused, completed, failed, cancelled, lost):
                found = await deliveries.listed(database, prediction.id, key.id)
                assert [(d.url, d.state, d.attempts) for d in found] == [(hook, State.WAITING, 0)] * bool(hook)

    in_database(scenario)


def test_the_most_overdue_is_claimed_first_and_is_due_again_when_its_carrier_dies(in_database, clock):
    async def scenario(database):
        _, ended = await owed(database, clock, 5)
        first = await deliveries.claim(database, 2, 30)
        assert [d.prediction_id for d in first] == [prediction.id for prediction in ended[:2]]
        assert [d.attempts for d in first] == [1, 1]
        assert [d.prediction_id for d in await deliveries.claim(database, 9, 30)] == [p.id for p in ended[2:]]
        assert await deliveries.claim(database, 9, 30) == []
        assert await deliveries.next_due_ms(database) == first[0].due_ms == database.now_ms() + 30_000
        clock.now += 30
        again = await deliveries.claim(database, 9, 30)
        assert {d.id: d.attempts for d in again}.items() >= {d.id: 2 for d in first}.items()
        assert not await deliveries.settle(database, first[0], State.DELIVERED, 200, "")

    in_database(scenario)


def test_what_became_of_it_is_written_down(in_database, clock):
    async def scenario(database):
        key, (task,) = await owed(database, clock)
        (first,) = await deliveries.claim(database, 1, 30)
        assert await deliveries.settle(database, first, State.WAITING, 500, "HTTP 500", again_in_s=60)
        (row,) = await deliveries.listed(database, task.id, key.id)
        assert (row.state, row.status_code, row.error, row.finished_ms) == (State.WAITING, 500, "HTTP 500", None)
        assert await deliveries.claim(database, 1, 30) == []
        clock.now += 60
        (second,) = await deliveries.claim(database, 1, 30)
        assert await deliveries.settle(database, second, State.DELIVERED, 200, "")
        assert not await deliveries.settle(database, second, State.GIVEN_UP, 500, "")
        (row,) = await deliveries.listed(database, task.id, key.id)
        assert (row.id, row.state, row.attempts, row.status_code, row.error) == (first.id, State.DELIVERED, 2, 200, "")
        assert row.finished_ms == database.now_ms()
        assert await deliveries.next_due_ms(database) is None
        assert await deliveries.listed(database, task.id, (await new_key(database)).id) == []

    in_database(scenario)


def test_a_replayed_one_begins_anew_and_is_fenced_from_its_past(in_database, clock):
    async def scenario(database):
        key, (task,) = await owed(database, clock)
        (old,) = await deliveries.claim(database, 1, 30)
        clock.now += 1
        assert not await deliveries.replay(database, old.id, task.id, (await new_key(database)).id)
        assert not await deliveries.replay(database, "none", task.id, key.id)
        assert await deliveries.replay(database, old.id, task.id, key.id)
        (new,) = await deliveries.claim(database, 1, 30)
        assert (new.id, new.attempts) == (old.id, 1)
        assert not await deliveries.settle(database, old, State.GIVEN_UP, 500, "late")
        assert await deliveries.settle(database, new, State.DELIVERED, 200, "")
        assert await deliveries.replay(database, old.id, task.id, key.id)
        assert [d.id for d in await deliveries.claim(database, 1, 30)] == [old.id]

    in_database(scenario)


def test_its_task_is_found_whosever_it_is_until_it_is_deleted(in_database, clock):
    async def scenario(database):
        key, (task,) = await owed(database, clock)
        assert await history.of_delivery(database, task.id) == task
        await predictions.delete(database, [task.id], key.id)
        assert await history.of_delivery(database, task.id) is None

    in_database(scenario)
