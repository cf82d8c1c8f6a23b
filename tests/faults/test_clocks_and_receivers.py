"""Clocks that jump, and receivers of webhooks that fail for hours; only the store's clock is not real.

A clock that was set back holds up what was to happen at a time that is now further away (a webhook's next attempt, the
lease of a worker that died); it loses nothing, and nothing that needs no such time waits.
"""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import sqlalchemy as sa

from fakes import Clock
from hidream.request import ImageRequest
from hidream.server.background.webhook_loop import LEASE_S, WebhookLoop
from hidream.server.service import assemble
from hidream.settings.tables import Settings, Webhooks
from hidream.settings.tables import Worker as Limits
from hidream.store import claims, history, keys, outbox, predictions
from hidream.store.admission import NewTask
from hidream.store.claims import Capacity
from hidream.store.database import Database
from hidream.store.outbox import DeliveryState
from hidream.store.schema import PREDICTIONS
from hidream.store.workers import Worker
from hidream.types import ImageFormat, Mode, Size, Status
from hidream.webhooks.delivery import ATTEMPTS_MAX
from hidream.worker.bridge import Bridge
from hidream.worker.generation import Tools
from hidream.worker.loop import WorkerLoop
from webhooks.receiver import Receiver, hangs, says
from worker.painter import Painter

MODEL = "wavespeed-ai/hidream-i1-dev"
VERSIONS = {MODEL: dict.fromkeys(Mode, "v1")}
DAY_S, HOUR_S = 86_400, 3600
SUBMISSION = ImageRequest("a house", Size(64, 48), 7, False, True, False, ImageFormat.PNG)


class Place:
    """A database of this clock, a service on it, and one key."""

    def __init__(self, database, service, key, clock):
        self.database, self.service, self.key, self.clock = database, service, key, clock

    async def submit(self, webhook="", seed=7):
        submission = replace(SUBMISSION, seed=seed)
        return await self.service.enqueuer.submit(NewTask(self.key, MODEL, submission, "http://here", webhook))

    async def end(self, task):
        """Do what a worker does."""
        room = Capacity(1, 10**12, has_tasks=False)
        (claimed,) = await claims.claim(self.database, [MODEL], "host:1", VERSIONS, 15, room)
        assert claimed.id == task.id
        assert await predictions.complete(self.database, claimed, [False], 100)

    async def owed(self, task):
        (found,) = await outbox.list_deliveries(self.database, task.id, self.key.id)
        return found

    async def status(self, task):
        return (await history.get(self.database, task.id, self.key.id)).status

    async def holder(self, task):
        """The worker that has taken a task, if one has."""
        wanted = sa.select(PREDICTIONS.c.worker_id).where(PREDICTIONS.c.id == task.id)
        async with self.database.read() as connection:
            return await connection.scalar(wanted)

    @asynccontextmanager
    async def worker(self, name, painter, tasks_max=8):
        bridge, stopping = Bridge(), asyncio.Event()
        bridge.set_engines({MODEL: painter})
        tools = Tools(lambda _: False, self.service.outputs, self.service.uploads, VERSIONS)
        async with Database.open(self.service.settings.database_url, self.clock) as database:
            worker = Worker(name, [MODEL], "v1")
            running = asyncio.create_task(
                WorkerLoop(database, bridge, worker, tools, Limits(lease_s=2.0, tasks_max=tasks_max)).run(stopping)
            )
            try:
                yield
            finally:
                painter.go_on.set()
                stopping.set()
                await asyncio.wait_for(running, 20)
        await bridge.close()


@asynccontextmanager
async def place(folder):
    clock = Clock(1_900_000_000.0)
    settings = Settings(home=folder, webhooks=Webhooks(allowed="127.0.0.0/8"))
    async with Database.open(settings.database_url, clock) as database:
        key, _ = await keys.create(database, "test")
        yield Place(database, assemble(settings, database), key, clock)


async def until(condition, timeout_s=20):
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def delivering(here):
    running = asyncio.create_task(WebhookLoop(here.service).run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])


def painter(ready=True, pace_s=0.0):
    made = Painter(pace_s=pace_s)
    if ready:
        made.go_on.set()
    return made


async def test_a_receiver_that_fails_eight_times_is_told_at_the_ninth(tmp_path):
    async with place(tmp_path) as here, Receiver(says(500)) as receiver:
        task = await here.submit(receiver.url())
        await here.end(task)
        for attempt in range(1, 9):
            await tried(here, task, attempt)
            owed = await here.owed(task)
            assert (owed.state, owed.attempts, owed.status_code) == (DeliveryState.WAITING, attempt, 500)
            assert len(receiver.received) == attempt
            here.clock.now = owed.due_ms / 1000 - 1  # and a second before its time nothing is sent
            async with delivering(here):
                await asyncio.sleep(0.1)
            assert len(receiver.received) == attempt
            here.clock.now += 1.001
        receiver.behaviour = says(200)
        await tried(here, task, 9)
        assert (await here.owed(task)).state is DeliveryState.DELIVERED
        assert len(receiver.received) == 9 < ATTEMPTS_MAX
        assert len({got.headers["webhook-id"] for got in receiver.received}) == 1
        assert len({got.body for got in receiver.received}) == 1


async def tried(here, task, attempt):
    """Deliver until an attempt was settled."""

    now_ms, due_ms = here.database.now_ms(), (await here.owed(task)).due_ms
    async with delivering(here):

        async def over():
            owed = await here.owed(task)
            claimed = owed.due_ms == now_ms + round(LEASE_S * 1000)  # the clock stands still meanwhile
            return owed.attempts == attempt and owed.due_ms != due_ms and not claimed

        await until(over)
        await asyncio.sleep(0.05)


async def test_hanging_and_redirecting_receivers_keep_no_task_from_its_end(tmp_path):
    redirects = says(302, "Location: http://169.254.169.254/latest/meta-data")
    async with place(tmp_path) as here, Receiver(hangs) as hung, Receiver(redirects) as sly:
        tasks = [await here.submit(receiver.url()) for receiver in (hung, sly) for _ in range(5)]
        async with delivering(here), here.worker("host:2", painter()):

            async def drawn():
                return [await here.status(task) for task in tasks] == [Status.COMPLETED] * len(tasks)

            await until(drawn)

            async def refused():
                return [(await here.owed(task)).status_code for task in tasks[5:]] == [302] * 5

            await until(refused)
        assert {(await here.owed(task)).state for task in tasks} == {DeliveryState.WAITING}


@pytest.mark.parametrize("jump_s", [DAY_S, -HOUR_S])
async def test_a_clock_that_jumps_while_a_task_is_drawn(tmp_path, jump_s):
    """Forward, every lease has ended; back, none ends for an hour: the task ends once, and the next is drawn."""

    slow = painter(ready=False)
    async with place(tmp_path) as here, Receiver(says(200)) as receiver, here.worker("host:1", slow, tasks_max=1):
        task = await here.submit(receiver.url())
        await asyncio.to_thread(slow.painting.wait, 20)
        async with here.worker("host:2", painter()):
            here.clock.now += jump_s
            later = await here.submit(receiver.url(), seed=8)

            async def later_is_done():
                if await here.holder(later) == "host:1":  # it has lost the first, and was the quicker one
                    slow.go_on.set()
                return await here.status(later) is Status.COMPLETED

            await until(later_is_done)
            slow.go_on.set()

            async def is_done():
                return await here.status(task) is Status.COMPLETED

            await until(is_done)
            async with delivering(here):
                await until(lambda: everyone_is_told(here, task, later))
        assert len(receiver.received) == 2  # and no more: each has ended once


async def everyone_is_told(here, *tasks):
    return [(await here.owed(task)).state for task in tasks] == [DeliveryState.DELIVERED] * len(tasks)


async def test_a_clock_that_was_set_back_holds_up_no_fresh_task_and_no_turn(tmp_path):
    async with place(tmp_path) as here, here.worker("host:1", painter()):
        for step_s in (0, -DAY_S, -DAY_S, 3 * DAY_S, -HOUR_S):
            here.clock.now += step_s
            task = await here.submit()

            async def is_done(task=task):
                return await here.status(task) is Status.COMPLETED

            await until(is_done)
