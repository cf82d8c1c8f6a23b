"""A database of any older revision, with rows in every table, becomes one of today without losing a value."""

import importlib
import pkgutil

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.ext.asyncio import create_async_engine

from databases import url_in
from every_table import ROWS, rows_of
from hidream.errors import ConfigurationError
from hidream.store import migrations
from hidream.store.copy import copy_database
from hidream.store.database import Database
from hidream.store.migrations import versions
from hidream.store.schema import METADATA

STEPS = sorted(module.name for module in pkgutil.iter_modules(versions.__path__))
REVISIONS = [importlib.import_module(f"{versions.__name__}.{step}").revision for step in STEPS]


async def make(url, revision):
    """Make a database as the release of a revision left it, and give all its rows, by table."""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(_made, revision)
    finally:
        await engine.dispose()


def _made(connection, revision):
    config = Config()
    config.set_main_option("script_location", migrations.__path__[0])
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
    older = sa.MetaData()
    older.reflect(connection)
    older.remove(older.tables["alembic_version"])
    filled = {}
    for table in older.sorted_tables:
        assert table.name in METADATA.tables, f"{table.name} is gone: its rows are lost"
        today = METADATA.tables[table.name]
        rows = rows_of(today, older=table.columns.keys())
        assert rows[0].keys() == set(table.columns.keys()), f"a column of {table.name} is gone: its values are lost"
        typed = sa.table(table.name, *(sa.column(each.name, each.type) for each in today.columns))
        connection.execute(sa.insert(typed), rows)
        filled[table.name] = rows
    return filled


async def rows_in(url, names):
    """The rows of some tables, by table and in the order in which `every_table` made them."""
    found = {}
    async with Database.open(url, make=False) as database, database.read() as connection:
        for name in names:
            table = METADATA.tables[name]
            rows = [
                dict(zip(table_names(table), row, strict=True)) for row in await connection.execute(sa.select(table))
            ]
            found[name] = sorted(rows, key=lambda row: str(row[table_names(table)[0]]))
    return found


def table_names(table):
    return [column.name for column in table.columns]


def kept(before, after):
    """Compare the columns that there were before."""
    for name, rows in before.items():
        assert len(after[name]) == len(rows) == ROWS
        for old, new in zip(rows, after[name], strict=True):
            assert {column: new[column] for column in old} == old, name


@pytest.mark.parametrize("revision", REVISIONS)
async def test_every_value_of_an_older_database_is_kept(new_url, revision):
    before = await make(new_url, revision)
    assert {"keys", "predictions", "workers"} <= before.keys()
    kept(before, await rows_in(new_url, before))
    async with Database.open(new_url) as database, database.write() as connection:  # and it works
        await connection.execute(
            sa.insert(METADATA.tables["workers"]), [rows_of(METADATA.tables["workers"])[0] | {"id": "new"}]
        )


@pytest.mark.parametrize("revision", [REVISIONS[0]])
async def test_an_older_database_is_copied_and_stays_as_it_is(new_url, tmp_path, revision):
    before = await make(new_url, revision)
    target = url_in(tmp_path / "target")
    assert (await copy_database(new_url, target, lambda *_: None))["predictions"] == ROWS
    kept(before, await rows_in(target, before))
    engine = create_async_engine(new_url)
    async with engine.connect() as connection:
        assert (await connection.execute(sa.text("SELECT version_num FROM alembic_version"))).scalar_one() == revision
    await engine.dispose()


async def test_a_database_of_a_newer_release_is_refused(new_url):
    await make(new_url, REVISIONS[-1])
    engine = create_async_engine(new_url)
    async with engine.begin() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    await engine.dispose()
    with pytest.raises(ConfigurationError, match="9999"):
        async with Database.open(new_url):
            pass
