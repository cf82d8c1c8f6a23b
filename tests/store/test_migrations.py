"""Migrations from one release's tables to the next: nothing is lost."""

import importlib
import json
import pkgutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from hidream.store import claims, history, keys, migrations, predictions
from hidream.store.claims import Capacity
from hidream.store.database import Database
from hidream.store.migrations import versions
from hidream.types import Mode

STEPS = sorted(module.name for module in pkgutil.iter_modules(versions.__path__))
ASKED = {
    "prompt": "a house",
    "size": "512*768",
    "seed": 7,
    "enable_base64_output": False,
    "enable_safety_checker": True,
    "enable_sync_mode": False,
    "output_format": "png",
}
WAITING = {"id": "a" * 32, "key_id": "k", "model": "m", "input": json.dumps(ASKED), "output_name": "x.png"}
WAITING |= {"status": "created", "code": 0, "error": "", "version": "", "created_ms": 1}
WAITING |= {"inference_ms": 0, "attempt": 0, "workers_lost": 0}


def make_first_release(path):
    """A database as the first release left it, with a task that waits and three that are over."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(sa.text("INSERT INTO keys VALUES ('k', 'test', 'h', 0, NULL)"))
        insert(connection, WAITING)
        for id_, has_nsfw in (("c" * 32, True), ("d" * 32, False)):
            insert(connection, WAITING | {"id": id_, "status": "completed", "has_nsfw": has_nsfw, "finished_ms": 2})
        insert(connection, WAITING | {"id": "e" * 32, "status": "failed", "code": 1405, "error": "no"})
    engine.dispose()


def insert(connection, row):
    connection.execute(sa.text(f"INSERT INTO predictions ({', '.join(row)}) VALUES (:{', :'.join(row)})"), row)


async def test_a_task_that_waited_in_the_first_release_is_drawn(tmp_path):
    path = tmp_path / "hidream.db"
    make_first_release(path)

    for _ in range(2):  # the second start has nothing to do
        async with Database.open(f"sqlite+aiosqlite:///{path}") as database:
            task = await history.get(database, "a" * 32, "k")
            assert (task.status, task.warnings, task.nsfw) == ("created", (), ())
            assert (task.input.steps, task.input.num_images) == (None, 1)
    async with Database.open(f"sqlite+aiosqlite:///{path}") as database:
        versions = {"m": dict.fromkeys(Mode, "v1")}
        (task,) = await claims.claim(database, ["m"], "w", versions, 15, Capacity(8, 1, has_tasks=False))
        assert await predictions.complete(database, task, [True], 1, ["“long”"])
        done = await history.get(database, task.id, "k")
    assert (done.status, done.warnings, done.nsfw) == ("completed", ("“long”",), (True,))
    with closing(sqlite3.connect(path)) as older:
        assert older.execute("SELECT has_nsfw FROM predictions WHERE id = ?", (done.id,)).fetchone() == (1,)


async def test_what_was_over_in_the_first_release_stays_as_it_was(tmp_path):
    path = tmp_path / "hidream.db"
    make_first_release(path)

    async with Database.open(f"sqlite+aiosqlite:///{path}") as database:
        flagged, fine, failed = [await history.get(database, letter * 32, "k") for letter in "cde"]
    assert (flagged.status, flagged.nsfw, flagged.output_names) == ("completed", (True,), ("x.png",))
    assert (fine.status, fine.nsfw) == ("completed", (False,))
    assert (failed.status, failed.nsfw, failed.code, failed.error) == ("failed", (), 1405, "no")


async def test_a_row_that_names_no_newer_column_is_read(tmp_path):
    path = tmp_path / "hidream.db"
    make_first_release(path)

    async with Database.open(f"sqlite+aiosqlite:///{path}") as database:
        with closing(sqlite3.connect(path)) as older:
            row = WAITING | {"id": "b" * 32, "has_nsfw": None}
            older.execute(f"INSERT INTO predictions ({', '.join(row)}) VALUES (:{', :'.join(row)})", row)
            older.commit()
        assert (await history.get(database, "b" * 32, "k")).warnings == ()


async def test_keys_and_tasks_of_older_releases_have_no_priority_until_they_are_given_one(tmp_path):
    path = tmp_path / "hidream.db"
    make_first_release(path)
    async with Database.open(f"sqlite+aiosqlite:///{path}") as database:
        assert [key.priority for key in await keys.list_keys(database)] == [0]
        assert [(await history.get(database, letter * 32, "k")).priority for letter in "acde"] == [0] * 4
        await keys.set_limits(database, "k", {}, priority=3)
        assert [key.priority for key in await keys.list_keys(database)] == [3]


@pytest.mark.parametrize("name", STEPS)
def test_every_step_is_named_for_its_revision(name):
    step = importlib.import_module(f"{versions.__name__}.{name}")
    assert name.startswith(f"v{step.revision}_")
