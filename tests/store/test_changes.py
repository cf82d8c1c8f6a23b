"""The watcher of changes: no waiter misses a change, and none waits after the end."""

import asyncio
import time

from store_calls import listener_ready

from hidream.store import keys
from hidream.store.database import Database


async def test_a_change_by_another_process_wakes_every_waiter(url):
    async with Database.open(url) as here, Database.open(url) as there:
        seen = here.changes.version()
        waiters = [asyncio.create_task(here.changes.wait_after(seen, 300)) for _ in range(50)]
        await asyncio.sleep(0)
        await keys.create(there, "other")
        started = time.monotonic()
        await asyncio.gather(*waiters)
        assert time.monotonic() - started < 5


async def test_a_change_between_looking_and_waiting_is_not_missed(url):
    async with Database.open(url) as database:
        seen = database.changes.version()
        await keys.create(database, "quick")
        await asyncio.wait_for(database.changes.wait_after(seen, 300), 60)


async def test_without_a_change_the_wait_ends_at_its_timeout(url):
    async with Database.open(url) as database:
        await listener_ready(database)
        started = time.monotonic()
        await database.changes.wait_after(database.changes.version(), 0.05)
        assert 0.04 < time.monotonic() - started < 5


async def test_stop_ends_waits_now_and_later(url):
    async with Database.open(url) as database:
        seen = database.changes.version()
        waiter = asyncio.create_task(database.changes.wait_after(seen, 300))
        await asyncio.sleep(0)
        database.changes.stop()
        await asyncio.wait_for(waiter, 60)
        await asyncio.wait_for(database.changes.wait_after(seen, 300), 60)
