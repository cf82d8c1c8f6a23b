"""The position in the queue: as the store says, but queried at most once a second."""

from fakes import Clock
from hidream.server.queue_status import TTL_S, QueueStatus, WorkerCounts
from hidream.store import history, workers
from hidream.store.workers import Worker


async def test_the_line_is_looked_at_once_for_all(monkeypatch, api):
    for _ in range(5):
        await api.submit(prompt="a")
    total, tasks = await history.list_predictions(api.database, (await api.claim()).key_id, history.Query())
    clock, looked, line = Clock(0.0), [], history.queue_snapshot

    async def counted(*given):
        looked.append(given)
        return await line(*given)

    monkeypatch.setattr(history, "queue_snapshot", counted)
    queue_status = QueueStatus(api.database, clock)
    still = [task for task in tasks if task.status == "created"]
    assert total == len(still) + 1 == 5
    for task in still:
        assert await queue_status.position(task) == (await line(api.database, task.model)).place(task)
    assert len(looked) == 1

    await api.submit(prompt="b")
    newest = (await history.list_predictions(api.database, still[0].key_id, history.Query()))[1][0]
    assert (await queue_status.position(newest)).before == 4, "it came since"
    await api.claim()
    assert [(await queue_status.position(newest)).before for _ in range(2)] == [4, 4], "as it was seen, and once"
    assert len(looked) == 1
    clock.now += TTL_S
    assert (await queue_status.position(newest)).before == 3
    assert len(looked) == 2


async def test_the_estimate_is_the_stores(api):
    for _ in range(3):
        await api.submit(prompt="a")
    done = await api.draw()
    await api.claim()
    _, tasks = await history.list_predictions(api.database, done.key_id, history.Query(status="created"))
    line = await history.queue_snapshot(api.database, tasks[0].model)
    assert await QueueStatus(api.database).position(tasks[0]) == line.place(tasks[0])


async def test_who_serves_a_model_is_looked_at_once_for_all(monkeypatch, api):
    clock, looked, ready = Clock(0.0), [], workers.ready

    async def counted(*given):
        looked.append(given)
        return await ready(*given)

    monkeypatch.setattr(workers, "ready", counted)
    serving = WorkerCounts(api.database, 15, clock)
    for number in (1, 2):
        await workers.register(api.database, Worker(f"host:{number}", ["m", "m", f"n{number}"], "v"))
    assert [await serving.workers(model) for model in ("m", "n1", "n2", "n3")] == [2, 1, 1, 0]
    assert len(looked) == 1
    await workers.deregister(api.database, "host:1")
    assert await serving.workers("m") == 2
    clock.now += TTL_S
    assert [await serving.workers(model) for model in ("m", "n1")] == [1, 0]
    assert len(looked) == 2
