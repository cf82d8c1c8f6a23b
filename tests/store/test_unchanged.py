"""A transaction that changes nothing notifies nobody."""

import asyncio
from dataclasses import replace

import pytest
import sqlalchemy as sa
from store_calls import MODEL, SUBMISSION, claim, claim_reserve, listener_ready, new_key, submit

from hidream.errors import HiDreamError
from hidream.store import predictions, uploads
from hidream.store.admission import NewTask
from hidream.store.database import Database
from hidream.store.enqueue import Enqueuer
from hidream.store.predictions import Lease
from hidream.types import Step


def announcements(database):
    """Collect what is said at the ends of transactions; SQLite says nothing, as its version does."""
    said = []

    def on_execute(_connection, _cursor, statement, *_):
        if "pg_notify" in statement:
            said.append(statement)

    sa.event.listen(database._backend.writer.sync_engine, "before_cursor_execute", on_execute)
    return said


async def test_what_changes_nothing_wakes_nobody(url):
    async with Database.open(url) as database, Database.open(url) as other:
        key = await new_key(database)
        task = await submit(database, key)
        refused = NewTask(replace(key, limits=replace(key.limits, tasks_max=1)), MODEL, SUBMISSION)
        await listener_ready(other)
        said = announcements(database)
        seen = other.changes.version()
        for _ in range(5):
            assert await claim(database, tasks=7, work=1, has_tasks=True) == []
        assert await claim_reserve(database, without=[key]) == []
        assert await predictions.renew(database, "w1", 15) == set()
        assert await predictions.report(database, "w1", {(task.id, 1): Step(1, 2)}) == set()
        assert await predictions.recover(database, 3, "w1") == 0
        assert not await predictions.requeue(database, Lease(task.id, 1, False))
        assert not await predictions.cancel(database, "unknown", key.id)
        assert await predictions.delete(database, [task.id], key.id) == []
        assert await uploads.claim(database, "unknown", 60) is None
        assert not await uploads.mark_stored(database, "unknown", "claim", "image/png", 1)
        await uploads.release(database, "unknown", "claim", "image/png")
        with pytest.raises(HiDreamError):
            await Enqueuer(database, 100).submit(refused)
        assert said == []
        if url.startswith("sqlite"):  # on PostgreSQL, what was said before may arrive late
            assert other.changes.version() == seen
        assert len(await claim(database)) == 1
        async with asyncio.timeout(60):
            await other.changes.wait_after(seen, 300)
        assert len(said) == url.startswith("postgresql")
