"""The steps from one release's tables to the next: nothing is lost, and both databases can go them."""

import asyncio
import importlib
import io
import json
import pkgutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations

from hidream.store import migrations, predictions
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
    """A database as the first release left it, with a task that waits."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(sa.text("INSERT INTO keys VALUES ('k', 'test', 'h', 0, NULL)"))
        insert(connection, WAITING)
    engine.dispose()


def insert(connection, row):
    connection.execute(sa.text(f"INSERT INTO predictions ({', '.join(row)}) VALUES (:{', :'.join(row)})"), row)


def test_a_task_that_waited_in_the_first_release_is_drawn(tmp_path):
    path = tmp_path / "hidream.db"
    make_first_release(path)

    async def scenario():
        for _ in range(2):  # the second start has nothing to do
            async with Database.open(f"sqlite+aiosqlite:///{path}") as database:
                task = await predictions.get(database, "a" * 32, "k")
                assert (task.status, task.warnings, task.input.num_inference_steps) == ("created", (), None)
        async with Database.open(f"sqlite+aiosqlite:///{path}") as database:
            task = await predictions.claim(database, ["m"], "w", dict.fromkeys(Mode, "v1"), 15)
            assert await predictions.complete(database, task, False, 1, ["“long”"])
            return await predictions.get(database, task.id, "k")

    assert asyncio.run(scenario()).warnings == ("“long”",)


def test_a_server_of_the_first_release_may_go_on_submitting(tmp_path):
    path = tmp_path / "hidream.db"
    make_first_release(path)

    async def scenario():
        async with Database.open(f"sqlite+aiosqlite:///{path}") as database:
            with closing(sqlite3.connect(path)) as older:
                row = WAITING | {"id": "b" * 32}
                older.execute(f"INSERT INTO predictions ({', '.join(row)}) VALUES (:{', :'.join(row)})", row)
                older.commit()
            return await predictions.get(database, "b" * 32, "k")

    assert asyncio.run(scenario()).warnings == ()


def postgresql(name):
    """The SQL of a step there, and the step."""
    step = importlib.import_module(f"{versions.__name__}.{name}")
    script = io.StringIO()
    options = {"as_sql": True, "output_buffer": script}
    with Operations.context(MigrationContext.configure(dialect_name="postgresql", opts=options)):
        step.upgrade()
    return " ".join(script.getvalue().split()), step


@pytest.mark.parametrize("name", STEPS)
def test_every_step_can_be_written_for_postgresql(name):
    script, step = postgresql(name)
    assert script.endswith(";")
    assert name.startswith(f"v{step.revision}_")


def test_warnings_on_postgresql():
    script, _ = postgresql("v0002_warnings")
    assert script == "ALTER TABLE predictions ADD COLUMN warnings JSON DEFAULT '[]' NOT NULL;"
