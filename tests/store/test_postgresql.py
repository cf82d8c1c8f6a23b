"""PostgreSQL: a server that is foreign, unreachable, or goes away and comes back."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from store_calls import claim_one, listener_ready, new_key, submit

from hidream.errors import ConfigurationError, DatabaseUnavailable
from hidream.store import backend, history, keys, postgresql, predictions
from hidream.store.completion_waiter import CompletionWaiter
from hidream.store.database import Database
from hidream.types import Status


@asynccontextmanager
async def at_most(seconds):
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


async def opened(url):
    async with Database.open(url):
        pass


async def test_another_programs_database_is_refused(postgres):
    url = postgres.url()

    engine = sa.ext.asyncio.create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE keys (a integer)"))
    await engine.dispose()
    with pytest.raises(ConfigurationError, match='relation "keys" already exists; accepted: postgresql'):
        await opened(url)


async def test_a_database_that_does_not_exist_is_refused_without_its_password(postgres):
    url = postgres.url().replace("hidream@", "hidream:secret@") + "x"
    with pytest.raises(ConfigurationError, match=r'database "test[0-9]+x" does not exist') as caught:
        await opened(url)
    assert "secret" not in str(caught.value)


async def test_a_server_that_does_not_answer_is_no_fault_of_the_configuration(postgres):
    url = postgres.url().replace(f":{postgres.port}/", ":1/")
    with pytest.raises(DatabaseUnavailable, match="the database does not answer"):
        await opened(url)


async def until_it_answers(database):
    async with asyncio.timeout(60):
        while True:
            try:
                return await keys.list_keys(database)
            except DatabaseUnavailable:
                await asyncio.sleep(0.05)


async def test_it_may_go_away_and_come_back(postgres):
    async with Database.open(postgres.url()) as database:
        key = await new_key(database)
        task = await submit(database, key)
        completion_waiter = CompletionWaiter(database)
        waiter = asyncio.create_task(completion_waiter.wait(task.id, key.id, 600))
        while completion_waiter._watcher is None:  # until it has looked
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
                        with pytest.raises(DatabaseUnavailable):
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
        seen = database.changes.version()
        async with at_most(60), Database.open(postgres_url(database)) as other:
            waiting = asyncio.create_task(database.changes.wait_after(seen, 300))
            await keys.create(other, "other")
            await waiting


def postgres_url(database):
    return database._backend.writer.url.render_as_string(hide_password=False)


async def test_a_server_that_hangs_is_not_waited_for(postgres, monkeypatch):
    url = postgres.url()
    await opened(url)  # it makes the tables, which may take longer than what is set next
    monkeypatch.setattr(postgresql, "WAIT_S", 1.0)

    async with Database.open(url) as database:
        key = await new_key(database)
        with postgres.paused():
            for attempt in (lambda: keys.list_keys(database), lambda: submit(database, key)):
                async with at_most(30):
                    with pytest.raises(DatabaseUnavailable):
                        await attempt()
        await until_it_answers(database)
        await submit(database, key)


async def test_a_commit_is_heard_at_once(postgres):
    url = postgres.url()

    async with Database.open(url) as here, Database.open(url) as there:
        await listener_ready(here)
        await listener_ready(there)
        times = []
        for _ in range(20):
            seen = here.changes.version()
            waiting = asyncio.create_task(here.changes.wait_after(seen, 30))
            started = time.monotonic()
            await keys.create(there, "other")
            await waiting
            times.append(time.monotonic() - started)
        assert sorted(times)[10] < 0.5


async def test_a_url_may_say_more_than_the_host(postgres):
    """What the driver is told about the connection holds for the one that listens, too."""

    url = f"{postgres.url()}?ssl=disable"
    async with Database.open(url) as here, Database.open(url) as there:
        await listener_ready(here)
        seen = here.changes.version()
        await keys.create(there, "other")
        async with asyncio.timeout(60):
            await here.changes.wait_after(seen, 300)


async def test_a_process_that_hangs_in_a_transaction_keeps_nobody_out_for_ever(postgres, monkeypatch):
    url = postgres.url()

    async with Database.open(url) as works:  # it makes the tables, which may take longer than what is set next
        key = await new_key(works)
        monkeypatch.setattr(postgresql, "IDLE_S", 1.0)
        async with Database.open(url) as hangs:
            with pytest.raises(DatabaseUnavailable):
                async with hangs.write(exclusive=True):
                    async with asyncio.timeout(5):
                        assert await submit(works, key)


async def test_who_waits_for_the_lock_keeps_no_connection_from_others(postgres):
    """Of one process, one waits for it with a connection; others write, and all read."""
    url = postgres.url()

    async with Database.open(url) as holds, Database.open(url) as database:
        key = await new_key(database)
        async with holds.write(exclusive=True):
            waiting = [asyncio.create_task(keys.create(database, f"{i}")) for i in range(30)]
            while database._backend.writer.pool.checkedout() == 0:
                await asyncio.sleep(0.01)
            async with asyncio.timeout(60):
                await asyncio.gather(*(history.get(database, "none", key.id) for _ in range(30)))
                assert not await predictions.cancel(database, "none", key.id)
            assert database._backend.writer.pool.checkedout() == 1
        assert len(await asyncio.gather(*waiting)) == 30


async def test_who_has_waited_behind_one_that_got_no_lock_gets_none(postgres, monkeypatch):
    url = postgres.url()
    await opened(url)
    monkeypatch.setattr(postgresql, "WAIT_S", 1.0)

    async with Database.open(url) as holds, Database.open(url) as database:
        async with holds.write(exclusive=True):
            made = (keys.create(database, f"{i}") for i in range(60))
            async with at_most(30):
                answers = await asyncio.gather(*made, return_exceptions=True)
            assert {type(answer) for answer in answers} == {DatabaseUnavailable}
        await keys.create(database, "after")


@pytest.mark.parametrize(("state", "damaged"), [("XX000", False), ("XX001", True), ("XX002", True)])
async def test_a_fault_inside_the_server_is_no_damage(postgres, state, damaged):
    async with Database.open(postgres.url()) as database, database.read() as connection:
        with pytest.raises(sa.exc.DBAPIError) as caught:
            await connection.execute(sa.text(f"DO $$ BEGIN RAISE 'x' USING ERRCODE = '{state}'; END $$"))
        assert backend.is_damaged(caught.value) is damaged
