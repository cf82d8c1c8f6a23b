"""Opening either kind of database: migrations, and what is not accepted."""

import asyncio
import subprocess
import sys

import pytest
import sqlalchemy as sa

from databases import url_in
from hidream.errors import ConfigurationError
from hidream.store import keys
from hidream.store.database import Database
from hidream.store.schema import KEYS


def test_a_write_that_raises_leaves_nothing(in_database):
    async def scenario(database):
        with pytest.raises(RuntimeError, match="refused a statement"):
            async with database.write() as connection:
                for id_ in "ab":
                    row = {"id": id_, "name": "", "hash": "the same", "created_ms": 0}
                    await connection.execute(sa.insert(KEYS).values(row))
        return await keys.list_keys(database)

    assert in_database(scenario) == []


def test_work_beside_the_callers_ends_before_the_database_is_closed(in_database):
    ended = []

    async def scenario(database):
        async def work():
            await database.changes.wait_after(database.changes.version(), 60)
            ended.append(await keys.list_keys(database))

        database.run_in_background(work())
        await asyncio.sleep(0)

    in_database(scenario)
    assert ended == [[]]


@pytest.mark.integration
def test_processes_that_start_at_once_migrate_once(new_url):
    code = f"""
import asyncio
from hidream.store import keys
from hidream.store.database import Database
async def main():
    async with Database.open({new_url!r}) as database:
        await keys.create(database, "x")
asyncio.run(main())
"""
    started = [subprocess.Popen([sys.executable, "-W", "error", "-c", code]) for _ in range(4)]
    assert [process.wait(60) for process in started] == [0, 0, 0, 0]

    async def count():
        async with Database.open(new_url) as database:
            return len(await keys.list_keys(database))

    assert asyncio.run(count()) == 4


def opened(url, make=True):
    async def scenario():
        async with Database.open(url, make=make):
            pass

    asyncio.run(scenario())


def test_one_that_is_not_there_is_made_only_where_that_is_wanted(new_url, tmp_path):
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"there is no database of this server at \S+hidream"):
            opened(new_url, make=False)
        assert list(tmp_path.iterdir()) == []
    opened(new_url)
    opened(new_url, make=False)


def test_an_empty_file_is_no_database_that_is_there(tmp_path):
    url = url_in(tmp_path)
    (tmp_path / "hidream.db").touch()
    with pytest.raises(ConfigurationError, match="there is no database"):
        opened(url, make=False)
    opened(url)


@pytest.mark.parametrize("bad", ["", "nonsense", "mysql://u:secret@h/d", "sqlite+aiosqlite://", "sqlite:///x.db"])
def test_other_urls_are_refused(bad):
    with pytest.raises(ConfigurationError, match="database URL") as caught:
        opened(bad)
    assert "secret" not in str(caught.value)


def test_a_database_of_a_newer_release_is_refused(url, in_database):
    async def scenario(database):
        async with database.write() as connection:
            await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))

    in_database(scenario)
    with pytest.raises(ConfigurationError, match=r"Can't locate revision identified by '9999'; accepted: "):
        opened(url)
