"""What most tests of the store ask for, in short words."""

import asyncio

from hidream.request import ImageRequest
from hidream.store import keys, predictions
from hidream.store.admission import Asked
from hidream.store.intake import Intake
from hidream.store.keys import Limits
from hidream.store.predictions import Reserve, Room
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
    return await Intake(database, queue_max, share).submit(Asked(key, model, submission, **asked))


async def claim(
    database, worker="w1", lease_s=15, tasks=1, work=ENDLESS, beside_others=False, reserved=False, models=(MODEL,)
):
    room = Room(tasks, work, beside_others, reserved)
    return await predictions.claim(database, models, worker, VERSIONS, lease_s, room)


async def claim_beside(database, worker="w1", lease_s=15, tasks=1, work=ENDLESS, without=(), models=(MODEL,)):
    reserve = Reserve(tasks, work, frozenset(key.id for key in without))
    return await predictions.claim_beside(database, models, worker, VERSIONS, lease_s, reserve)


async def claim_one(database, *args, **kwargs):
    (task,) = await claim(database, *args, **kwargs)
    return task


async def heard(database):
    """Wait until it hears of commits: PostgreSQL's listener says once that it is there, and SQLite counts from 1."""
    while not database.changes.now():
        await asyncio.sleep(0.01)


async def quiet(statements):
    """Wait until nothing was said to the database for a while; what was said before is forgotten."""
    while statements:
        statements.clear()
        await asyncio.sleep(0.3)
