"""Opening: the pragmas that durability rests on, migrations, and what is not accepted."""

import asyncio
import subprocess
import sys

import pytest
import sqlalchemy as sa

from hidream.errors import ConfigurationError
from hidream.store import keys
from hidream.store.database import Database


def test_what_is_written_survives_a_power_cut(in_database):
    async def scenario(database):
        async with database.write() as connection:
            return {
                name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            }

    assert in_database(scenario) == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_write_that_raises_leaves_nothing(in_database):
    async def scenario(database):
        with pytest.raises(sa.exc.IntegrityError):
            async with database.write() as connection:
                await connection.execute(sa.text("INSERT INTO keys VALUES ('a', 'one', 'h', 0, NULL)"))
                await connection.execute(sa.text("INSERT INTO keys VALUES ('b', 'two', 'h', 0, NULL)"))
        return await keys.listed(database)

    assert in_database(scenario) == []


def test_processes_that_start_at_once_migrate_once(url):
    code = f"""
import asyncio
from hidream.store import keys
from hidream.store.database import Database
async def main():
    async with Database.open({url!r}) as database:
        await keys.create(database, "x")
asyncio.run(main())
"""
    started = [subprocess.Popen([sys.executable, "-W", "error", "-c", code]) for _ in range(4)]
    assert [process.wait(60) for process in started] == [0, 0, 0, 0]

    async def count():
        async with Database.open(url) as database:
            return len(await keys.listed(database))

    assert asyncio.run(count()) == 4


@pytest.mark.parametrize("bad", ["", "nonsense", "mysql://u:secret@h/d", "sqlite+aiosqlite://", "sqlite:///x.db"])
def test_other_urls_are_refused(bad):
    async def scenario():
        async with Database.open(bad):
            pass

    with pytest.raises(ConfigurationError, match="database URL") as caught:
        asyncio.run(scenario())
    assert "secret" not in str(caught.value)
