"""Opening: the pragmas that durability rests on, migrations, and what is not accepted."""

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from hidream.errors import ConfigurationError
from hidream.store import database as database_file
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


def opened(path):
    async def scenario():
        async with Database.open(f"sqlite+aiosqlite:///{path}"):
            pass

    asyncio.run(scenario())


def beneath_a_file(path):
    path.parent.rmdir()
    path.parent.touch()


def text(path):
    path.write_text("hello " * 1000)


def foreign(path):
    """Another program's database, with a table of the same name as one of ours."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE keys (a)")


def newer(path):
    """A database that a later release has migrated."""
    opened(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (beneath_a_file, "its folder cannot be made: File exists"),
        (Path.mkdir, "unable to open database file"),
        (text, "file is not a database"),
        (foreign, "table keys already exists"),
        (newer, "Can't locate revision identified by '9999'"),
    ],
)
def test_what_is_no_database_of_ours_is_refused(tmp_path, made, why):
    path = tmp_path / "home" / "hidream.db"
    path.parent.mkdir()
    made(path)
    with pytest.raises(ConfigurationError) as caught:
        opened(path)
    assert str(caught.value).startswith(f"the database URL is sqlite+aiosqlite:///{path}: {why}; accepted: ")


def test_a_database_that_is_locked_for_long_is_no_fault_of_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(database_file, "_PRAGMAS", ("PRAGMA busy_timeout = 1", *database_file._PRAGMAS[1:]))
    path = tmp_path / "hidream.db"
    opened(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sa.exc.OperationalError, match="database is locked"):
            opened(path)
