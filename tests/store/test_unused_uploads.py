"""Unused uploads are withdrawn sooner, but none that a task uses."""

from dataclasses import replace

import pytest
from store_calls import SUBMISSION, claim_one, new_key, submit

from hidream.errors import InvalidInput, TooMany
from hidream.store import predictions, retention, uploads
from hidream.store.keys import Limits
from hidream.store.uploads import Upload


def an_upload(database, key, name):
    return Upload(name, key.id, "a.png", "image/png", 3, database.now_ms(), stored=True)


async def test_an_upload_that_a_task_uses_stays_as_long_as_it_is_needed(database, clock):
    key = await new_key(database)
    for name in ("used", "masks", "unused"):
        await uploads.create(database, an_upload(database, key, name))
    await submit(database, key, replace(SUBMISSION, image="used", mask="masks"))
    clock.now += 3601
    now = database.now_ms()
    for used_before, why in ((0, "once"), (0, "until it is forgotten"), (now, "for the others a task waits")):
        assert (await retention.purgeable(database, used_before, now - 3600_000)).uploads == ["unused"], why
    await predictions.complete(database, await claim_one(database), [False], 1)
    remains = await retention.purgeable(database, now, now - 3600_000)
    assert sorted(remains.uploads) == ["masks", "unused", "used"]
    await retention.purge(database, remains)
    assert (await retention.purgeable(database, now, now)).uploads == []


async def test_what_is_withdrawn_is_used_by_no_task_and_filled_by_nobody(database, clock):
    key = await new_key(database)
    await uploads.create(database, an_upload(database, key, "stored"))
    await uploads.create(database, replace(an_upload(database, key, "announced"), stored=False))
    claim = await uploads.claim(database, "announced", 60)
    clock.now += 10
    assert sorted((await retention.purgeable(database, 0, database.now_ms())).uploads) == ["announced", "stored"]
    with pytest.raises(InvalidInput, match="image or mask is a file that no longer exists"):
        await submit(database, key, replace(SUBMISSION, image="stored"))
    assert await uploads.get(database, "stored") is None
    assert not await uploads.mark_stored(database, "announced", claim, "image/png", 3)
    assert await uploads.claim(database, "announced", 60) is None
    await submit(database, key)  # another task is taken in


async def test_a_task_that_was_refused_uses_nothing(database, clock):
    key = replace(await new_key(database), limits=Limits(tasks_max=1))
    await uploads.create(database, an_upload(database, key, "image"))
    await submit(database, key)
    with pytest.raises(TooMany):
        await submit(database, key, replace(SUBMISSION, image="image"))
    clock.now += 10
    assert (await retention.purgeable(database, 0, database.now_ms())).uploads == ["image"]
