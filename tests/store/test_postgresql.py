"""PostgreSQL: a server that is not ours, is not there, or goes away and comes back."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from asking import claim_one, heard, new_key, submit

from hidream.errors import ConfigurationError, StoreUnavailable
from hidream.store import history, keys, postgresql, predictions
from hidream.store.database import Database
from hidream.store.endings import Endings
from hidream.types import Status


@asynccontextmanager
async def at_most(seconds):
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def opened(url):
    async def scenario():
        async with Database.open(url):
            pass

    asyncio.run(scenario())


def test_another_programs_database_is_refused(postgres):
    url = postgres.url()

    async def foreign():
        engine = sa.ext.asyncio.create_async_engine(url)
        async with engine.begin() as connection:
            await connection.execute(sa.text("CREATE TABLE keys (a integer)"))
        await engine.dispose()

    asyncio.run(foreign())
    with pytest.raises(ConfigurationError, match='relation "keys" already exists; accepted: postgresql'):
        opened(url)


def test_a_database_that_does_not_exist_is_refused_without_its_password(postgres):
    url = postgres.url().replace("hidream@", "hidream:secret@") + "x"
    with pytest.raises(ConfigurationError, match=r'database "test[0-9]+x" does not exist') as caught:
        opened(url)
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_no_fault_of_the_configuration(postgres):
    url = postgres.url().replace(f":{postgres.port}/", ":1/")
    with pytest.raises(StoreUnavailable, match="the database does not answer"):
        opened(url)


async def until_it_answers(database):
    async with asyncio.timeout(60):
        while True:
            try:
                return await keys.listed(database)
            except StoreUnavailable:
                await asyncio.sleep(0.05)


def test_it_may_go_away_and_come_back(postgres):
    async def scenario():
        async with Database.open(postgres.url()) as database:
            key = await new_key(database)
            task = await submit(database, key)
            endings = Endings(database)
            waiter = asyncio.create_task(endings.settled(task.id, key.id, 600))
            while endings._watcher is None:  # until it has looked
                await asyncio.sleep(0.01)
            await asyncio.to_thread(postgres.stop, "immediate")
            try:
                for attempt in (
                    lambda: history.get(database, task.id, key.id),
                    lambda: submit(database, key),
                    lambda: claim_one(database),
                ):
                    for _ in range(postgresql.CONNECTIONS):  # more than once, as all connections are lost
                        async with at_most(30):
                            with pytest.raises(StoreUnavailable):
                                await attempt()
            finally:
                await asyncio.to_thread(postgres.start)
            await until_it_answers(database)
            claimed = await claim_one(database)
            assert claimed.id == task.id
            assert await predictions.complete(database, claimed, [False], 1)
            async with asyncio.timeout(60):
                assert (await waiter).status is Status.COMPLETED
            await asyncio.sleep(2 * postgresql.RECONNECT_S)  # the listener has come back
            seen = database.changes.now()
            async with at_most(60), Database.open(postgres_url(database)) as other:
                waiting = asyncio.create_task(database.changes.since(seen, 300))
                await keys.create(other, "other")
                await waiting

    asyncio.run(scenario())


def postgres_url(database):
    return database._backend.writer.url.render_as_string(hide_password=False)


def test_a_server_that_hangs_is_not_waited_for(postgres, monkeypatch):
    url = postgres.url()
    opened(url)  # it makes the tables, which may take longer than what is set next
    monkeypatch.setattr(postgresql, "WAIT_S", 1.0)

    async def scenario():
        async with Database.open(url) as database:
            key = await new_key(database)
            with postgres.paused():
                for attempt in (lambda: keys.listed(database), lambda: submit(database, key)):
                    async with at_most(30):
                        with pytest.raises(StoreUnavailable):
                            await attempt()
            await until_it_answers(database)
            await submit(database, key)

    asyncio.run(scenario())


def test_a_commit_is_heard_at_once(postgres):
    url = postgres.url()

    async def scenario():
        async with Database.open(url) as here, Database.open(url) as there:
            await heard(here)
            await heard(there)
            times = []
            for _ in range(20):
                seen = here.changes.now()
                waiting = asyncio.create_task(here.changes.since(seen, 30))
                started = time.monotonic()
                await keys.create(there, "other")
                await waiting
                times.append(time.monotonic() - started)
            return sorted(times)[10]

    assert asyncio.run(scenario()) < 0.5


def test_a_url_may_say_more_than_the_host(postgres):
    """What the driver is told about the connection holds for the one that listens, too."""

    async def scenario():
        url = f"{postgres.url()}?ssl=disable"
        async with Database.open(url) as here, Database.open(url) as there:
            await heard(here)
            seen = here.changes.now()
            await keys.create(there, "other")
            async with asyncio.timeout(60):
                await here.changes.since(seen, 300)

    asyncio.run(scenario())


def test_a_process_that_hangs_in_a_transaction_keeps_nobody_out_for_ever(postgres, monkeypatch):
    url = postgres.url()

    async def scenario():
        async with Database.open(url) as works:  # it makes the tables, which may take longer than what is set next
            key = await new_key(works)
            monkeypatch.setattr(postgresql, "IDLE_S", 1.0)
            async with Database.open(url) as hangs:
                with pytest.raises(StoreUnavailable):
                    async with hangs.write(alone=True):
                        async with asyncio.timeout(5):
                            assert await submit(works, key)

    asyncio.run(scenario())
