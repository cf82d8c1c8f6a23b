"""Workers: ready while their heartbeats arrive."""

from hidream.store import workers
from hidream.store.workers import Worker


async def test_a_worker_is_ready_while_it_is_seen(database, clock):
    assert await workers.ready(database, 15) == []
    worker = Worker("host:1", ["m"], "v1")
    await workers.register(database, worker)
    assert await workers.ready(database, 15) == [worker]
    clock.now += 16
    assert await workers.ready(database, 15) == []
    await workers.heartbeat(database, worker.id)
    assert await workers.ready(database, 15) == [worker]
    await workers.deregister(database, worker.id)
    assert await workers.ready(database, 15) == []


async def test_registering_again_replaces_a_dead_namesake_and_forgets_the_long_gone(database, clock):
    await workers.register(database, Worker("host:1", ["m"], "v1"))
    await workers.register(database, Worker("host:2", ["m"], "v1"))
    clock.now += workers.FORGET_MS / 1000 + 1
    await workers.register(database, Worker("host:1", ["m"], "v2"))
    assert await workers.ready(database, 1e9) == [Worker("host:1", ["m"], "v2")]


def test_ids_tell_processes_apart():
    assert workers.worker_id(1) != workers.worker_id(2)
