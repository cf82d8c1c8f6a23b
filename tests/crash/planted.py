"""Four planted faults that the sweep must find; each changes this process only."""

import asyncio
import dataclasses
from contextvars import ContextVar

import sqlalchemy as sa

from hidream.store import claims, outbox, predictions
from hidream.store.prediction import COLUMNS, Prediction
from hidream.store.schema import PREDICTIONS as P
from hidream.types import Status
from hidream.worker import loop


class Later:
    """An object store whose files are written by whoever reads `late`."""

    def __init__(self, place, late):
        self.place, self.late = place, late

    async def write(self, name, data):
        self.late[name] = self.place, data


def early_commit():
    """The row says completed, and then the files are written."""
    late, real_draw, real_complete = {}, loop.generate, predictions.complete

    async def draw(bridge, tools, job):
        return await real_draw(bridge, dataclasses.replace(tools, outputs=Later(tools.outputs, late)), job)

    async def complete(database, task, *args):
        done = await real_complete(database, task, *args)
        for name in task.output_names:
            if name in late:
                place, data = late.pop(name)
                await place.write(name, data)
        return done

    loop.generate, predictions.complete = draw, complete


def missing_fence():
    """What a worker says of a task counts, whichever attempt it speaks of."""
    real = predictions._leave_processing

    async def unfenced(database, task, move, **values):
        async with database.read() as connection:
            attempt = (await connection.scalars(sa.select(P.c.attempt).where(P.c.id == task.id))).one()
        return await real(database, dataclasses.replace(task, attempt=attempt), move, **values)

    predictions._leave_processing = unfenced


def lost_webhook():
    """The webhook that an end owes is written down in a transaction of its own, after the one that ends the task."""
    real_owe, real_leave = outbox.add, predictions._leave_processing
    later = ContextVar("later", default=None)

    async def owe(connection, these, now):
        if later.get() is None:
            await real_owe(connection, these, now)
        else:
            later.get().extend(these)

    async def leave(database, *args, **values):
        owed = []
        token = later.set(owed)
        done = await real_leave(database, *args, **values)
        later.reset(token)
        async with database.write() as connection:
            await real_owe(connection, owed, database.now_ms())
        return done

    predictions._leave_processing = leave
    outbox.add = owe


def double_claim():
    """Two workers look for tasks, and then both write that they have them."""

    async def claim(database, models, worker_id, versions, lease_s, room):
        waiting = (
            sa.select(P.c.id, P.c.model, P.c.input)
            .where(P.c.status == Status.CREATED, P.c.model.in_(models))
            .limit(room.tasks)
        )
        async with database.read() as connection:
            rows = (await connection.execute(waiting)).all()
        if not rows:
            return []
        await asyncio.sleep(0.05)
        lease = {"worker_id": worker_id, "lease_until_ms": database.now_ms() + round(lease_s * 1000)}
        version = sa.case({row.id: claims._version(versions, row) for row in rows}, value=P.c.id)
        taken = sa.update(P).where(P.c.id.in_([row.id for row in rows]))
        values = {"status": Status.PROCESSING, "attempt": P.c.attempt + 1, "version": version, **lease}
        async with database.write() as connection:
            found = await connection.execute(taken.values(started_ms=database.now_ms(), **values).returning(*COLUMNS))
            return [Prediction.of_row(row) for row in found.all()]

    claims.claim = claim


FAULTS = {each.__name__: each for each in (early_commit, missing_fence, lost_webhook, double_claim)}
