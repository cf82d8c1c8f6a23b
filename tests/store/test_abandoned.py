"""Tasks for a model that no worker serves: how long they wait, and which workers prolong that."""

from store_calls import MODEL, OTHER, claim, new_key, submit

from hidream.store import history, outbox, predictions, workers
from hidream.store.workers import Worker
from hidream.types import Status

AN_HOUR = 3600


async def state(database, task):
    return (await history.get(database, task.id, task.key_id)).status


async def test_a_task_that_nobody_serves_fails_with_its_reason_and_owes_its_webhook(database, clock):
    key = await new_key(database)
    task = await submit(database, key, model=OTHER, webhook="https://example.org/hook")
    clock.now += AN_HOUR - 1
    assert await predictions.abandon(database, AN_HOUR) == 0
    clock.now += 1
    young = await submit(database, key, model=OTHER)
    assert await predictions.abandon(database, AN_HOUR) == 1
    failed = await history.get(database, task.id, key.id)
    assert (failed.status, failed.code, failed.finished_ms) == (Status.FAILED, 1405, database.now_ms())
    assert failed.error == "no worker that serves its model was seen for 3600 seconds"
    assert len(await outbox.list_deliveries(database, task.id, key.id)) == 1
    assert await state(database, young) is Status.CREATED
    assert await predictions.abandon(database, AN_HOUR) == 0


async def test_whoever_serves_it_begins_the_time_anew_also_one_that_has_left(database, clock):
    task = await submit(database, await new_key(database), model=OTHER)
    await workers.register(database, Worker("host:1", [MODEL], "v1"))
    clock.now += AN_HOUR / 2
    await workers.register(database, Worker("host:2", [MODEL, OTHER], "v1"))
    await workers.deregister(database, "host:2")
    assert [worker.id for worker in await workers.ready(database, AN_HOUR)] == ["host:1"]
    clock.now += AN_HOUR - 1
    assert await predictions.abandon(database, AN_HOUR) == 0
    assert await state(database, task) is Status.CREATED
    clock.now += 1
    await workers.heartbeat(database, "host:1")
    assert await predictions.abandon(database, AN_HOUR) == 1


async def test_what_is_served_or_drawn_is_left_alone(database, clock):
    key = await new_key(database)
    served, drawn = await submit(database, key), await submit(database, key, model=OTHER)
    assert await claim(database, models=[OTHER])
    await workers.register(database, Worker("host:1", [MODEL], "v1"))
    clock.now += 10 * AN_HOUR
    await workers.heartbeat(database, "host:1")
    assert await predictions.abandon(database, AN_HOUR) == 0
    assert [await state(database, each) for each in (served, drawn)] == [Status.CREATED, Status.PROCESSING]


async def test_the_last_to_serve_a_model_is_not_forgotten_with_the_long_gone(database, clock):
    await workers.register(database, Worker("host:1", [MODEL, OTHER], "v1"))
    clock.now += workers.FORGET_MS / 1000 + 1
    await workers.register(database, Worker("host:2", [MODEL], "v1"))
    assert [worker.id for worker in await workers.ready(database, 1e9)] == ["host:1", "host:2"]
    clock.now += workers.FORGET_ALL_MS / 1000
    await workers.register(database, Worker("host:2", [MODEL], "v1"))
    assert [worker.id for worker in await workers.ready(database, 1e9)] == ["host:2"]
