"""What `check` reports: whether a write would succeed now, and at what cost."""

import ast
import asyncio
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

import hidream.store
from hidream.errors import DatabaseUnavailable
from hidream.store import database as database_file
from hidream.store import keys
from hidream.store.database import Database


async def test_many_who_ask_share_one_answer(database):
    real, checks = database._backend.check, []

    async def counted(durably):
        checks.append(durably)
        await real(durably)

    object.__setattr__(database._backend, "check", counted)
    await asyncio.gather(*(database.check() for _ in range(100)))
    await database.check()
    assert checks == [False]
    await asyncio.sleep(database_file.CHECKED_S)
    await database.check()
    assert checks == [False, False]


async def test_a_check_that_hangs_is_not_waited_for_nor_begun_twice(monkeypatch, url, clock):
    monkeypatch.setattr(database_file, "CHECK_S", 0.05)

    async with Database.open(url, clock) as database:
        checks, answer = [], asyncio.Event()

        async def hangs(_durably):
            checks.append(1)
            await answer.wait()

        object.__setattr__(database._backend, "check", hangs)
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable, match="takes too long"):
                await database.check()
        answer.set()
        assert checks == [1]


async def test_while_another_process_holds_the_lock_one_reads_on_and_all_who_write_wait_once(
    sqlite_url, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        database_file.sqlite, "_PRAGMAS", ("PRAGMA busy_timeout = 500", *database_file.sqlite._PRAGMAS[1:])
    )

    async with Database.open(sqlite_url) as database:
        await keys.create(database, "before")
        with closing(sqlite3.connect(tmp_path / "hidream.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            writing = [asyncio.create_task(keys.create(database, f"{i}")) for i in range(20)]
            for _ in range(20):
                assert len(await keys.list_keys(database)) == 1
            with pytest.raises(DatabaseUnavailable, match="locked"):
                await database.check()
            answers = await asyncio.gather(*writing, return_exceptions=True)
            assert {type(answer) for answer in answers} == {DatabaseUnavailable}
            assert time.monotonic() - began < 5, "not twenty times half a second"
            other.execute("ROLLBACK")
        await keys.create(database, "after")
        await asyncio.sleep(database_file.CHECKED_S)
        await database.check()


async def test_what_a_write_has_found_stays_wrong_until_something_is_on_the_disk_again(sqlite_url, tmp_path):
    async with Database.open(sqlite_url) as database:
        await database.check()
        committed = database.changes.version()
        database._write_failed = True
        database._checked_until = 0
        await database.check()
        assert database.changes.version() != committed, "it has committed"
        assert not database._write_failed


async def test_a_server_that_takes_no_writes_is_not_ready(postgres):
    url = postgres.url()

    async with Database.open(url) as database:
        await database.check()
        async with database.read() as connection:
            name = (await connection.execute(sa.text("SELECT current_database()"))).scalar_one()
            await connection.execute(sa.text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    async with Database.open(url) as database:
        with pytest.raises(DatabaseUnavailable, match="takes no writes"):
            await database.check()
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            await keys.create(database, "x")


async def test_a_lock_that_is_held_on_postgresql_is_found_out_within_seconds(postgres):
    async with Database.open(postgres.url()) as database, database._backend.writer.begin() as connection:
        await connection.execute(database._backend.lock)
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            await database.check()
        assert time.monotonic() - began < 5


# --- what is waited for within a transaction ---


def test_within_a_transaction_nothing_but_the_database_is_waited_for():
    """Each await in a block of `database.write()` is the connection's, or of a function that is given it."""
    found = 0
    for path in Path(hidream.store.__file__).parent.glob("*.py"):
        for block in ast.walk(ast.parse(path.read_text())):
            if isinstance(block, ast.AsyncWith) and re.search(r"database\.write\(", ast.unparse(block.items[0])):
                found += 1
                for each in ast.walk(ast.Module(block.body, [])):
                    if isinstance(each, ast.Await):
                        text = ast.unparse(each.value)
                        assert re.match(r"connection\.|[\w.]+\([^()]*\bconnection\b", text), f"{path.name}: {text}"
    assert found > 20


def test_only_the_store_opens_transactions():
    for path in Path(hidream.store.__file__).parents[1].rglob("*.py"):
        if path.parent.name != "store":
            assert "database.write(" not in path.read_text(), path
