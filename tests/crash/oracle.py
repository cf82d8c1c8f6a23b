"""What must be true after any crash, checked on the rows, a journal of their changes, the files and the receiver.

The journal is written by triggers, in the transactions themselves, so that it has what was committed and nothing else.
It and the table of moves below know nothing of the code that is tested.
"""

import io
from collections import Counter, defaultdict

import numpy as np
import sqlalchemy as sa
from PIL import Image

from hidream.store.outbox import DeliveryState
from hidream.store.prediction import COLUMNS, Prediction
from hidream.store.schema import DELIVERIES, METADATA, PREVIEWS

_VALUES = "(id, before, after, attempt_before, attempt) VALUES"
_CHANGED = "OLD.status <> NEW.status OR OLD.attempt <> NEW.attempt"
_ROWS = {
    "INSERT": f"INSERT INTO journal {_VALUES} (NEW.id, '', NEW.status, 0, NEW.attempt);",
    "UPDATE": f"INSERT INTO journal {_VALUES} (NEW.id, OLD.status, NEW.status, OLD.attempt, NEW.attempt);",
    "DELETE": f"INSERT INTO journal {_VALUES} (OLD.id, OLD.status, '', OLD.attempt, OLD.attempt);",
}
_COLUMNS = "id VARCHAR(32), before VARCHAR(32), after VARCHAR(32), attempt_before INTEGER, attempt INTEGER"

MOVES = {
    *(("", "created"), ("", "failed")),
    *(("created", "processing"), ("created", "cancelled"), ("created", "failed")),
    *(("processing", state) for state in ("completed", "failed", "cancelled", "created")),
    *((state, "deleted") for state in ("completed", "failed", "cancelled")),
    ("deleted", ""),
}
ENDS = ("completed", "failed", "cancelled")


async def prepare(database):
    """Make the journal, once in each database."""
    async with database.write() as connection:
        for statement in _statements(database._backend.one_writer):
            await connection.exec_driver_sql(statement)


def _statements(is_sqlite):
    yield f"CREATE TABLE journal (n {'INTEGER PRIMARY KEY' if is_sqlite else 'BIGSERIAL'}, {_COLUMNS})"
    for event, row in _ROWS.items():
        name, when = f"journal_{event.lower()}", f"WHEN ({_CHANGED})" if event == "UPDATE" else ""
        head = f"CREATE TRIGGER {name} AFTER {event} ON predictions FOR EACH ROW {when}"
        if is_sqlite:
            yield f"{head} BEGIN {row} END"
        else:
            body = f"BEGIN {row} RETURN NULL; END"
            yield f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"
            yield f"{head} EXECUTE FUNCTION {name}()"


async def clear(database):
    """Empty all tables."""
    async with database.write() as connection:
        for table in reversed(METADATA.sorted_tables):
            await connection.execute(sa.delete(table))
        await connection.exec_driver_sql("DELETE FROM journal")


async def look(database, statement):
    """Read without visiting a site."""
    async with database._backend.reader.connect() as connection:
        return (await connection.execute(statement)).all()


async def rows(database):
    """All tasks, by their prompts."""
    found = defaultdict(list)
    for row in await look(database, sa.select(*COLUMNS)):
        task = Prediction.of_row(row)
        found[task.input.prompt].append(task)
    return found


async def at_death(database, memory, outputs):
    """What must be true at any moment: nothing acknowledged is lost, and what is called completed is there."""
    found = await rows(database)
    known = {row.id for row in await look(database, sa.text("SELECT id FROM journal"))}  # rows are not kept for ever
    lost = [f"{tag} was acknowledged, and is lost" for tag, id_ in memory.tasks().items() if id_ not in known]
    return lost + await _files(found, outputs) + await _journal(database)


async def at_end(database, memory, outputs, expected, received):
    """What must be true in the end. `received` are what came to the receiver, `expected` the ends by prompts."""
    found = await rows(database)
    wrong = await at_death(database, memory, outputs)
    wrong += [f"{tag} was never acknowledged" for tag in expected if tag not in memory.tasks()]
    for tag, tasks in found.items():
        if len(tasks) != 1:
            wrong.append(f"{tag} was made {len(tasks)} times")
        wrong += [f"{tag} ended as {task.status}" for task in tasks if task.status not in expected[tag]]
    if previews := await look(database, sa.select(PREVIEWS.c.prediction_id)):
        wrong.append(f"{len(previews)} previews of finished tasks were left")
    return wrong + memory.complaints() + await _webhooks(database, found, received)


async def _files(found, outputs):
    wrong = []
    for task in (task for tasks in found.values() for task in tasks if task.status == "completed"):
        for i, name in enumerate(task.output_names):
            try:
                with Image.open(io.BytesIO(await outputs.read(name))) as image:
                    pixels = np.asarray(image)
                is_whole = pixels.shape[:2] == (task.input.size.height, task.input.size.width)
                if not (is_whole and (pixels == (task.input.seed + i) % 256).all()):
                    wrong.append(f"{task.input.prompt} has another image")
            except Exception as error:  # noqa: BLE001, RUF100 - missing or broken, it is a complaint
                wrong.append(f"{task.input.prompt} is completed, and its file is not there: {type(error).__name__}")
    return wrong


async def _journal(database):
    wrong, ends = [], Counter()
    statement = sa.text("SELECT id, before, after, attempt_before, attempt FROM journal ORDER BY n")
    for id_, before, after, attempt_before, attempt in await look(database, statement):
        if (before, after) not in MOVES or attempt - attempt_before != (after == "processing"):
            wrong.append(f"{id_} went from {before!r} to {after!r}, attempt {attempt_before} to {attempt}")
        ends[id_] += after in ENDS
    return wrong + [f"{id_} ended {count} times" for id_, count in ends.items() if count > 1]


async def _webhooks(database, found, received):
    wrong = []
    made = defaultdict(list)
    for row in await look(database, sa.select(DELIVERIES.c.prediction_id, DELIVERIES.c.id, DELIVERIES.c.state)):
        made[row.prediction_id].append(row)
    for tag, task in ((tag, task) for tag, tasks in found.items() for task in tasks if task.webhook):
        told = [each for each in received if each["prediction"] == task.id and each["answer"] == 200]
        if not told or [row.state for row in made[task.id]] != [DeliveryState.DELIVERED]:
            wrong.append(f"{tag}: its webhook was received {len(told)} times, and its rows are {made[task.id]}")
        if {each["webhook"] for each in told} - {row.id for row in made[task.id]}:
            wrong.append(f"{tag}: its webhook came under several ids")
        if len({each["status"] for each in told}) > 1:
            wrong.append(f"{tag}: its webhooks tell of several ends")
    return wrong
