"""SQLite's file: the pragmas for durability, and files of other programs."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from hidream.errors import ConfigurationError, DatabaseUnavailable
from hidream.store import keys, sqlite
from hidream.store.database import Database


async def test_what_is_written_survives_a_power_cut(tmp_path):
    async with Database.open(f"sqlite+aiosqlite:///{tmp_path}/new.db") as database, database.write() as connection:
        pragmas = {
            name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
        assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


async def opened(path):
    async with Database.open(f"sqlite+aiosqlite:///{path}"):
        pass


def beneath_a_file(path):
    path.parent.rmdir()
    path.parent.touch()


def text(path):
    path.write_text("hello " * 1000)


def foreign(path):
    """Another program's database, with a table of the same name as one of ours."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE keys (a)")


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (beneath_a_file, "its folder cannot be made: File exists"),
        (Path.mkdir, "unable to open database file"),
        (text, "file is not a database"),
        (foreign, "table keys already exists"),
    ],
)
async def test_what_is_no_database_of_ours_is_refused(tmp_path, made, why):
    path = tmp_path / "home" / "hidream.db"
    path.parent.mkdir()
    made(path)
    with pytest.raises(ConfigurationError) as caught:
        await opened(path)
    assert str(caught.value).startswith(f"the database URL is sqlite+aiosqlite:///{path}: {why}; accepted: ")


async def test_a_database_that_is_locked_for_long_is_no_fault_of_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "_PRAGMAS", ("PRAGMA busy_timeout = 1", *sqlite._PRAGMAS[1:]))
    path = tmp_path / "hidream.db"
    await opened(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailable, match="database is locked"):
            await opened(path)


async def test_a_write_that_waits_too_long_says_so_and_the_next_one_works(sqlite_url, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "_PRAGMAS", ("PRAGMA busy_timeout = 1", *sqlite._PRAGMAS[1:]))

    async with Database.open(sqlite_url) as database:
        with closing(sqlite3.connect(tmp_path / "hidream.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseUnavailable, match="database is locked"):
                await keys.create(database, "one")
            assert await keys.list_keys(database) == []
            other.execute("ROLLBACK")
        await keys.create(database, "two")
        assert [key.name for key in await keys.list_keys(database)] == ["two"]


async def test_a_full_disk_says_so(sqlite_url):
    async with Database.open(sqlite_url) as database:
        async with database.write() as connection:
            pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar()
            for _ in range(sqlite.CONNECTIONS):
                await connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(DatabaseUnavailable, match="database or disk is full"):
            for _ in range(1000):
                await keys.create(database, "x" * 200)
        assert await keys.list_keys(database)
