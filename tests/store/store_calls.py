"""Short helpers for the calls that most tests of the store make."""

import asyncio

from hidream.request import ImageRequest
from hidream.store import claims, keys
from hidream.store.admission import NewTask
from hidream.store.claims import Capacity, ReserveCapacity
from hidream.store.enqueue import Enqueuer
from hidream.store.keys import Limits
from hidream.types import ImageFormat, Mode, Size

MODEL, OTHER = "wavespeed-ai/hidream-i1-dev", "wavespeed-ai/hidream-i1-full"
MODES = {mode: f"v1-{mode}" for mode in Mode}
VERSIONS = {MODEL: MODES, OTHER: MODES}
SUBMISSION = ImageRequest("ein Haus “am Meer” 🏠", Size(512, 768), 7, True, True, False, ImageFormat.PNG)
ENDLESS = 10**15
"""More work than there is."""


async def new_key(database, **limits):
    return (await keys.create(database, "test", limits=Limits(**limits)))[0]


async def submit(database, key, submission=SUBMISSION, queue_max=1000, share=1.0, model=MODEL, **asked):
    return await Enqueuer(database, queue_max, share).submit(NewTask(key, model, submission, **asked))


async def claim(
    database, worker="w1", lease_s=15, tasks=1, work=ENDLESS, has_tasks=False, reserved=False, models=(MODEL,)
):
    room = Capacity(tasks, work, has_tasks, reserved)
    return await claims.claim(database, models, worker, VERSIONS, lease_s, room)


async def claim_reserve(database, worker="w1", lease_s=15, tasks=1, work=ENDLESS, without=(), models=(MODEL,)):
    reserve = ReserveCapacity(tasks, work, frozenset(key.id for key in without))
    return await claims.claim_reserve(database, models, worker, VERSIONS, lease_s, reserve)


async def claim_one(database, *args, **kwargs):
    (task,) = await claim(database, *args, **kwargs)
    return task


async def listener_ready(database):
    """Wait until it hears of commits: PostgreSQL's listener says once that it is there, and SQLite counts from 1."""
    while not database.changes.version():
        await asyncio.sleep(0.01)


async def no_statements(statements):
    """Wait until nothing was said to the database for a while; what was said before is forgotten."""
    while statements:
        statements.clear()
        await asyncio.sleep(0.3)
