"""The bytes of a key with very many files are added up outside the transactions, once in a while."""

import asyncio
from dataclasses import replace

import pytest
import sqlalchemy as sa
from store_calls import claim_one, new_key, submit

from hidream.errors import TooMany
from hidream.store import cached_sums, predictions, uploads
from hidream.store.cached_sums import CachedSums
from hidream.store.database import Database
from hidream.store.keys import Limits
from hidream.store.uploads import Upload


def upload(database, key, name, size):
    return Upload(name, key.id, "a.png", "image/png", size, database.now_ms(), stored=True)


async def test_a_large_sum_is_not_made_in_the_transaction(clock, monkeypatch, url):
    monkeypatch.setattr(cached_sums, "EXACT_ROWS_MAX", 1)

    async with Database.open(url, clock) as database:
        limits = Limits(bytes_max=100)
        key = replace(await new_key(database), limits=limits)
        tasks = [await submit(database, key) for _ in range(2)]
        for _ in tasks:
            assert await predictions.complete(database, await claim_one(database), [False], 1, (), 20)
        clock.now += cached_sums.CACHED_MS / 1000
        said = []
        engine = database._backend.writer.sync_engine
        sa.event.listen(engine, "before_cursor_execute", lambda *args: said.append(args[2]))
        asked = [uploads.create(database, upload(database, key, f"n{i}", 25), limits) for i in range(5)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert answers.count(None) == 2, "what this process adds is seen at once"
        await submit(database, key)
        assert not [statement for statement in said if "sum(" in statement]
        await uploads.create(database, upload(database, key, "last", 10), limits)
        await predictions.delete(database, [task.id for task in tasks], key.id)
        for _ in range(2):
            with pytest.raises(TooMany, match="and has 100"):
                await submit(database, key)
        clock.now += cached_sums.CACHED_MS / 1000
        await submit(database, key)


async def test_what_comes_while_a_sum_is_made_counts():
    made = CachedSums(lambda: 1)

    async def add_up():
        made.add("key", 5)
        return cached_sums.EXACT_ROWS_MAX + 1, 100

    await asyncio.gather(*(made.prepare("key", add_up) for _ in range(3)))
    assert made.large("key") == 105
    assert made.large("other") is None
