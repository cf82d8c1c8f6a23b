"""A copy of a database has every row of every table, or nothing at all."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from databases import url_in
from every_table import ROWS, rows_of
from fakes import Clock
from hidream.errors import ConfigurationError, DatabaseUnavailable, InvalidInput
from hidream.store import copy, keys, sqlite
from hidream.store.copy import copy_database
from hidream.store.database import Database
from hidream.store.schema import METADATA

HERE = Path(__file__)
WAYS = [
    "sqlite to sqlite",
    *(
        pytest.param(f"{way}", marks=pytest.mark.integration)
        for way in ("sqlite to postgresql", "postgresql to sqlite")
    ),
]


def ignore(*_):
    pass


@pytest.fixture(params=WAYS)
def urls(request, tmp_path, sqlite_copies):
    """The source, which has tables, and the target, which does not exist or is empty."""
    source, _, target = request.param.partition(" to ")
    new = {
        "sqlite": lambda: url_in(tmp_path / "target"),
        "postgresql": lambda: request.getfixturevalue("postgres").url(),
    }
    with_tables = {
        "sqlite": lambda: sqlite_copies.url(tmp_path),
        "postgresql": lambda: request.getfixturevalue("postgresql_url"),
    }
    return with_tables[source](), new[target]()


async def fill(url, tables=METADATA.sorted_tables):
    async with Database.open(url, Clock()) as database, database.write() as connection:
        for table in tables:
            rows = [{_key(table, name): v for name, v in row.items()} for row in rows_of(table)]
            await connection.execute(sa.insert(table), rows)


def _key(table, name):
    return next(column.key for column in table.columns if column.name == name)


async def contents(url):
    """All rows of all tables, sorted."""
    async with Database.open(url, Clock(), make=False) as database, database.read() as connection:
        return {
            table.name: sorted([list(row) for row in await connection.execute(sa.select(table))], key=repr)
            for table in METADATA.sorted_tables
        }


async def test_every_row_of_every_table_is_copied(urls):
    source, target = urls
    await fill(source)
    seen = []
    counts = await copy_database(source, target, lambda *progress: seen.append(progress))
    assert counts == dict.fromkeys((table.name for table in METADATA.sorted_tables), ROWS)
    assert await contents(target) == await contents(source)
    assert seen == [(table.name, ROWS, ROWS) for table in METADATA.sorted_tables]

    assert await copy_database(source, target, lambda *_: pytest.fail("it was written again")) == counts


async def test_more_rows_than_fit_into_a_batch_are_copied(urls, monkeypatch):
    source, target = urls
    await fill(source)
    monkeypatch.setattr(copy, "BATCH_ROWS", 2)
    seen = []
    await copy_database(source, target, lambda *progress: seen.append(progress))
    assert await contents(target) == await contents(source)
    assert seen[:2] == [(METADATA.sorted_tables[0].name, 2, 3), (METADATA.sorted_tables[0].name, 3, 3)]


async def test_a_key_is_valid_in_the_copy_with_the_same_pepper(urls):
    source, target = urls
    async with Database.open(source) as database:
        key, secret = await keys.create(database, "shop", pepper="x" * 16)
    await copy_database(source, target, ignore)
    async with Database.open(target, make=False) as database:
        assert await keys.find(database, secret, pepper="x" * 16) == key
        assert await keys.find(database, secret, pepper="y" * 16) is None


@pytest.mark.integration
@pytest.mark.parametrize("deaths", [[4], pytest.param(range(len(METADATA.sorted_tables)), marks=pytest.mark.long)])
async def test_a_copy_that_is_killed_leaves_nothing_and_can_be_made_again(urls, deaths):
    source, target = urls
    await fill(source)
    for calls in deaths:  # after the rows of a table; after those of the last, before the commit
        assert killed(source, target, calls)
        assert await copy_database(source, target, ignore, dry_run=True)  # which refuses a target that has rows
    assert not killed(source, target, len(METADATA.sorted_tables))
    assert await contents(target) == await contents(source)


def killed(source, target, calls):
    """Copy in a process that kills itself after so many calls of `on_rows`; whether it did."""
    paths = os.pathsep.join(map(str, (HERE.parents[1], HERE.parents[2] / "src")))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, source, target, str(calls)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9


KILLED = """
import asyncio, os, signal, sys
from hidream.store.copy import copy_database
left = int(sys.argv[3])
def on_rows(*_):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
asyncio.run(copy_database(sys.argv[1], sys.argv[2], on_rows))
"""


@pytest.mark.parametrize("used", ["source", "target"])
async def test_a_database_that_somebody_has_open_is_refused(urls, used, monkeypatch):
    source, target = urls
    monkeypatch.setattr(sqlite, "_PRAGMAS", ("PRAGMA busy_timeout = 1", *sqlite._PRAGMAS[1:]))
    await fill(source)
    async with Database.open({"source": source, "target": target}[used]) as database, database.read() as connection:
        await connection.execute(sa.text("SELECT 1"))  # so that there is a session, however busy the machine is
        with pytest.raises(InvalidInput, match=r"in use by .* Stop all servers"):
            await copy_database(source, target, ignore)
    await copy_database(source, target, ignore)


async def test_nobody_can_open_a_file_that_is_being_copied(sqlite_url, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "_PRAGMAS", ("PRAGMA busy_timeout = 1", *sqlite._PRAGMAS[1:]))
    await fill(sqlite_url)

    with pytest.raises(DatabaseUnavailable, match="locked"):
        async with copy._alone(sqlite_url, make=False), Database.open(sqlite_url):
            pass


@pytest.mark.integration
async def test_who_opens_a_database_of_a_server_that_is_being_copied_waits(postgresql_url):
    async def opened():
        async with Database.open(postgresql_url):
            pass

    async with copy._alone(postgresql_url, make=False) as connection:
        opening = asyncio.create_task(opened())
        waiting = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        while not (await connection.execute(waiting)).scalar_one():
            await asyncio.sleep(0.01)
        assert not opening.done()
    await asyncio.wait_for(opening, 30)


async def test_a_target_with_other_rows_is_refused_and_stays(urls):
    source, target = urls
    await fill(source)
    async with Database.open(target) as database:
        await keys.create(database, "theirs")
    before = await contents(target)
    for dry_run in (True, False):
        with pytest.raises(InvalidInput, match="has 1 acts, 1 keys; accepted: an empty database"):
            await copy_database(source, target, ignore, dry_run=dry_run)
    assert await contents(target) == before


async def test_a_dry_run_creates_no_file(sqlite_url, tmp_path):
    await fill(sqlite_url)
    counts = await copy_database(sqlite_url, url_in(tmp_path / "target"), ignore, dry_run=True)
    assert counts["predictions"] == ROWS
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_source_that_does_not_exist_is_not_created(tmp_path, dry_run):
    with pytest.raises(ConfigurationError, match="there is no database"):
        await copy_database(url_in(tmp_path / "wrong"), url_in(tmp_path / "target"), ignore, dry_run=dry_run)
    assert not list(tmp_path.iterdir())


async def test_a_database_is_not_copied_to_itself(sqlite_url):
    with pytest.raises(InvalidInput, match="the same database"):
        await copy_database(sqlite_url, sqlite_url, ignore)


@pytest.mark.integration
async def test_a_row_that_the_target_does_not_take_is_named_without_its_values(sqlite_url, postgres):
    table = METADATA.tables["keys"]
    (row, *_) = rows_of(table)
    async with Database.open(sqlite_url, Clock()) as database, database.write() as connection:
        await connection.execute(sa.insert(table), [row | {"name": "secret\0name"}])
    target = postgres.url()
    with pytest.raises(ConfigurationError, match="keys: the target does not take one of the rows 1 to 1") as error:
        await copy_database(sqlite_url, target, ignore)
    assert "secret" not in str(error.value)
    assert not any((await copy_rows(target)).values())


async def copy_rows(url):
    async with Database.open(url) as database, database.read() as connection:
        return {
            t.name: (await connection.execute(sa.select(sa.func.count()).select_from(t))).scalar_one()
            for t in METADATA.sorted_tables
        }
