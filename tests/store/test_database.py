"""Opening either kind of database: migrations, and what is refused."""

import asyncio
import sys

import pytest
import sqlalchemy as sa

from databases import url_in
from hidream.errors import ConfigurationError
from hidream.store import keys
from hidream.store.database import Database
from hidream.store.schema import KEYS


async def test_a_write_that_raises_leaves_nothing(database):
    with pytest.raises(RuntimeError, match="refused a statement"):
        async with database.write() as connection:
            for id_ in "ab":
                row = {"id": id_, "name": "", "hash": "the same", "created_ms": 0}
                await connection.execute(sa.insert(KEYS).values(row))
    assert await keys.list_keys(database) == []


async def test_work_beside_the_callers_ends_before_the_database_is_closed(url, clock):
    ended = []

    async with Database.open(url, clock) as database:

        async def work():
            await database.changes.wait_after(database.changes.version(), 60)
            ended.append(await keys.list_keys(database))

        database.run_in_background(work())
        await asyncio.sleep(0)
    assert ended == [[]]


@pytest.mark.integration
async def test_processes_that_start_at_once_migrate_once(new_url):
    code = f"""
import asyncio
from hidream.store import keys
from hidream.store.database import Database
async def main():
    async with Database.open({new_url!r}) as database:
        await keys.create(database, "x")
asyncio.run(main())
"""
    async with asyncio.timeout(60):
        command = (sys.executable, "-W", "error", "-c", code)
        started = [await asyncio.create_subprocess_exec(*command) for _ in range(4)]
        assert [await process.wait() for process in started] == [0, 0, 0, 0]

    async with Database.open(new_url) as database:
        assert len(await keys.list_keys(database)) == 4


async def opened(url, make=True):
    async with Database.open(url, make=make):
        pass


async def test_one_that_is_not_there_is_made_only_where_that_is_wanted(new_url, tmp_path):
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"there is no database of this server at \S+hidream"):
            await opened(new_url, make=False)
        assert list(tmp_path.iterdir()) == []
    await opened(new_url)
    await opened(new_url, make=False)


async def test_an_empty_file_is_no_database_that_is_there(tmp_path):
    url = url_in(tmp_path)
    (tmp_path / "hidream.db").touch()
    with pytest.raises(ConfigurationError, match="there is no database"):
        await opened(url, make=False)
    await opened(url)


@pytest.mark.parametrize("bad", ["", "nonsense", "mysql://u:secret@h/d", "sqlite+aiosqlite://", "sqlite:///x.db"])
async def test_other_urls_are_refused(bad):
    with pytest.raises(ConfigurationError, match="database URL") as caught:
        await opened(bad)
    assert "secret" not in str(caught.value)


async def test_a_database_of_a_newer_release_is_refused(url, clock):
    async with Database.open(url, clock) as database, database.write() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match=r"Can't locate revision identified by '9999'; accepted: "):
        await opened(url)
