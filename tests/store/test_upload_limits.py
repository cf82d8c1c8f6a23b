"""Limits of uploads: requests per minute, and bytes that a key stores."""

import asyncio
from dataclasses import replace

import pytest
from store_calls import claim_one, new_key, submit

from hidream.errors import TooMany
from hidream.store import predictions, uploads
from hidream.store.keys import Limits
from hidream.store.uploads import Upload


def upload(database, key, name, size=10, filename="a.png"):
    return Upload(name, key.id, filename, "image/png", size, database.now_ms(), stored=False)


async def test_uploads_are_requests_of_the_minute(database, clock):
    limits = Limits(requests_per_minute=3)
    key = replace(await new_key(database), limits=limits)
    await submit(database, key)
    clock.now += 10
    for name in ("a", "b"):
        await uploads.check(database, key)
        await uploads.create(database, upload(database, key, name), limits)
    for refused in (uploads.check(database, key), uploads.create(database, upload(database, key, "c"), limits)):
        with pytest.raises(TooMany, match="may make 3 requests a minute") as raised:
            await refused
        assert raised.value.retry_after_s == 50
    within = upload(database, key, "d", filename=uploads.INLINE)
    await uploads.create(database, within, limits, within_request=True)
    assert await uploads.get(database, "c") is None
    clock.now += 60
    await uploads.check(database, key)


async def test_bytes_are_counted_announced_stored_and_drawn(database):
    limits = Limits(bytes_max=100)
    key, other = replace(await new_key(database), limits=limits), await new_key(database)
    prediction = await submit(database, key)
    assert await predictions.complete(database, await claim_one(database), [False], 1, (), 40)
    await uploads.create(database, upload(database, other, "theirs", 10**6))
    await uploads.create(database, upload(database, key, "a", 50), limits)
    with pytest.raises(TooMany, match="may keep 100 bytes of uploads and images, and has 90"):
        await uploads.create(database, upload(database, key, "b", 11), limits)
    await uploads.check(database, key)
    await uploads.mark_stored(
        database, "a", await uploads.claim(database, "a", 60), "image/png", 60
    )  # as a release did that did not hold it to its size
    for refused in (uploads.check(database, key), submit(database, key)):
        with pytest.raises(TooMany, match="and has 100"):
            await refused
    await predictions.delete(database, [prediction.id], key.id)
    await uploads.create(database, upload(database, key, "b", 40), limits)
    with pytest.raises(TooMany):
        await uploads.check(database, key)


async def test_of_many_at_once_no_more_are_taken_than_fit(database):
    limits = Limits(bytes_max=100, requests_per_minute=7)
    key = replace(await new_key(database), limits=limits)
    asked = [uploads.create(database, upload(database, key, f"n{i}", 15), limits) for i in range(20)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert answers.count(None) == 6
    assert {type(answer) for answer in answers} == {type(None), TooMany}
