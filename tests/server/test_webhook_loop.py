"""Webhook delivery: signed, retried, given up, and not delayed by another receiver that hangs."""

import asyncio
import json

import pytest

from hidream.errors import DatabaseUnavailable
from hidream.server.background import webhook_loop
from hidream.server.background.webhook_loop import WebhookLoop
from hidream.store import keys, outbox, predictions, webhook_secrets
from hidream.store.outbox import DeliveryState
from hidream.webhooks import delivery, verify
from hidream.webhooks.delivery import WebhookClient
from webhooks.receiver import Receiver, hangs, says

LOCAL = "127.0.0.0/8"


async def until(condition, timeout_s=20):
    async with asyncio.timeout(timeout_s):
        while not (found := await condition()):
            await asyncio.sleep(0.01)
    return found


async def deliver(api, webhook_client=None):
    return asyncio.create_task(WebhookLoop(api.service, webhook_client).run())


async def leave(api, running):
    """End it as the process does, while the database that it may be using is open."""
    api.database.changes.stop()
    await running


async def submit(api, receiver, path="/hook", **body):
    answer = await api.submit(query=f"?webhook={receiver.url(path=path)}", prompt="a house", **body)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


async def settled(api, data, *states):
    """Wait for the one delivery of a task to be in one of these states after an attempt."""
    key = (await keys.list_keys(api.database))[0]

    async def look():
        found = await outbox.list_deliveries(api.database, data["id"], key.id)
        return found and found[0].state in states and found[0].error is not None and found[0].attempts and found[0]

    return await until(look)


async def test_a_finished_task_is_told_and_signed(open_api):
    async with open_api(allowed=LOCAL) as api, Receiver(says(200)) as receiver:
        running = await deliver(api)
        data = await submit(api, receiver, seed=5)
        await api.draw()
        done = await settled(api, data, DeliveryState.DELIVERED)
        assert (done.attempts, done.status_code, done.error) == (1, 200, "")
        (got,) = receiver.received
        told = json.loads(got.body)
        result = (await api.get(data["urls"]["get"])).json()["data"]
        asked = told.pop("input")
        assert told == result
        assert (asked["prompt"], asked["seed"]) == ("a house", 5)
        assert told["outputs"][0].startswith("http://test/outputs/")
        key = (await keys.list_keys(api.database))[0]
        secret = (await webhook_secrets.get(api.database, key.id, "unused")).secret
        assert verify(got.headers, got.body, secret)["id"] == data["id"]
        assert got.headers["webhook-id"] == done.id
        await leave(api, running)


async def test_one_that_fails_is_tried_again_under_the_same_id(monkeypatch, open_api):
    monkeypatch.setattr(delivery, "DELAYS_S", (0, 0.1, 0.1, 0.1))

    async with open_api(allowed=LOCAL) as api:
        answers = iter([503, 500, 200])

        async def answer(writer):
            await says(next(answers))(writer)

        async with Receiver(answer) as receiver:
            running = await deliver(api)
            data = await submit(api, receiver)
            await api.fail(1405, "no")
            done = await settled(api, data, DeliveryState.DELIVERED)
            assert (done.attempts, done.status_code) == (3, 200)
            assert len({got.headers["webhook-id"] for got in receiver.received}) == 1
            assert len({got.body for got in receiver.received}) == 1
            assert json.loads(receiver.received[0].body)["status"] == "failed"
            await leave(api, running)


async def test_after_the_last_attempt_it_is_given_up(monkeypatch, open_api):
    monkeypatch.setattr(delivery, "DELAYS_S", (0, 0.05))
    monkeypatch.setattr(delivery, "ATTEMPTS_MAX", 2)

    async with open_api(allowed=LOCAL) as api, Receiver(says(500)) as receiver:
        running = await deliver(api)
        data = await submit(api, receiver)
        await api.draw()
        done = await settled(api, data, DeliveryState.GIVEN_UP)
        assert (done.attempts, done.status_code, len(receiver.received)) == (2, 500, 2)
        await leave(api, running)


async def test_a_target_that_is_not_public_is_not_called(open_api):
    async def _error_of(api, data):
        return (await settled(api, data, DeliveryState.WAITING)).error

    async with open_api(allowed=LOCAL) as api, Receiver(says(200)) as receiver:
        data = await submit(api, receiver)
        running = await deliver(api, WebhookClient())  # as after the operator has taken it off the list
        await api.draw()
        done = await settled(api, data, DeliveryState.WAITING)
        await until(lambda: _error_of(api, data))
        assert (done.attempts, receiver.connections) == (1, 0)
        await leave(api, running)


async def test_receivers_that_hang_hold_up_nobody_else(monkeypatch, open_api):
    monkeypatch.setattr(webhook_loop, "POSTPONE_S", 60)

    async with open_api(allowed=LOCAL) as api:
        async with Receiver(hangs) as stuck, Receiver(says(204)) as well:
            for _ in range(40):  # more than are delivered at a time, and all of them earlier
                await submit(api, stuck, enable_safety_checker=False)
                await api.draw()
            running = await deliver(api, WebhookClient(allowed=api.service.allowlist, total_s=60))
            data = await submit(api, well)
            await api.draw()
            await settled(api, data, DeliveryState.DELIVERED)  # long before any of them is given up
            assert stuck.connections <= webhook_loop.PER_HOST_MAX // 2
        await leave(api, running)


async def test_a_claim_that_died_is_taken_up(monkeypatch, open_api):
    monkeypatch.setattr(webhook_loop, "POLL_S", 0.2)

    async with open_api(allowed=LOCAL) as api, Receiver(says(200)) as receiver:
        data = await submit(api, receiver)
        await api.draw()
        (dead,) = await outbox.claim(api.database, 10, 0.5)
        running = await deliver(api)
        done = await settled(api, data, DeliveryState.DELIVERED)
        assert (done.attempts, len(receiver.received)) == (2, 1)
        assert not await outbox.record_attempt(api.database, dead, DeliveryState.GIVEN_UP, None, "late")
        await leave(api, running)


async def test_two_processes_deliver_each_once(open_apis):
    async with open_apis(2, allowed=LOCAL) as (one, other), Receiver(says(200)) as receiver:
        running = [await deliver(one), await deliver(other)]
        tasks = []
        for _ in range(12):
            tasks.append(await submit(one, receiver))
            await one.draw()
        for data in tasks:
            await settled(one, data, DeliveryState.DELIVERED)
        assert len(receiver.received) == 12
        await leave(one, running[0])
        await leave(other, running[1])


async def test_a_deleted_task_is_not_told(open_api):
    async with open_api(allowed=LOCAL) as api, Receiver(says(200)) as receiver:
        data = await submit(api, receiver)
        await api.draw()
        key = (await keys.list_keys(api.database))[0]
        assert len(await predictions.delete(api.database, [data["id"]], key.id)) == 1
        running = await deliver(api)
        done = await settled(api, data, DeliveryState.GIVEN_UP)
        assert (done.error, receiver.connections) == ("the prediction was deleted", 0)
        await leave(api, running)


async def test_a_database_that_is_away_ends_nothing(monkeypatch, open_api):
    monkeypatch.setattr(webhook_loop, "RETRY_S", 0.05)
    real_claim, real_settle = outbox.claim, outbox.record_attempt
    away = iter([True] * 6)

    async def claim(*args):
        if next(away, False):
            raise DatabaseUnavailable("away")
        return await real_claim(*args)

    async def settle(*args):
        if next(away, False):
            raise DatabaseUnavailable("away")
        return await real_settle(*args)

    monkeypatch.setattr(outbox, "claim", claim)
    monkeypatch.setattr(outbox, "record_attempt", settle)

    async with open_api(allowed=LOCAL) as api, Receiver(says(200)) as receiver:
        running = await deliver(api)
        data = await submit(api, receiver)
        await api.draw()
        assert (await settled(api, data, DeliveryState.DELIVERED)).attempts == 1
        assert len(receiver.received) == 1
        await leave(api, running)


@pytest.mark.parametrize("allowed", [LOCAL])
async def test_on_leaving_what_is_on_its_way_arrives(open_api, allowed):
    async with open_api(allowed=allowed) as api:
        begun = asyncio.Event()

        async def slow(writer):
            begun.set()
            await asyncio.sleep(0.3)
            await says(200)(writer)

        async with Receiver(slow) as receiver:
            running = await deliver(api)
            data = await submit(api, receiver)
            await api.draw()
            await begun.wait()
            api.database.changes.stop()
            async with asyncio.timeout(10):
                await running
            assert (await settled(api, data, DeliveryState.DELIVERED)).status_code == 200
