"""Uploads: announced, then stored once."""

from store_calls import new_key

from hidream.store import keys, uploads
from hidream.store.uploads import Upload


async def test_an_upload_is_announced_and_then_stored_once(database):
    key = await new_key(database)
    announced = Upload("name", key.id, "my “cat”.png", "image/png", 0, 5, stored=False)
    await uploads.create(database, announced)
    assert await uploads.get(database, "name") == announced
    claim = await uploads.claim(database, "name", 60)
    assert await uploads.mark_stored(database, "name", claim, "image/webp", 2**33)
    assert not await uploads.mark_stored(database, "name", claim, "image/png", 1)
    assert not await uploads.mark_stored(database, "another", claim, "image/png", 1)
    assert [await uploads.claim(database, name, 60) for name in ("name", "another")] == [None, None]
    assert await uploads.get(database, "name") == Upload(
        "name", key.id, "my “cat”.png", "image/webp", 2**33, 5, stored=True
    )
    assert await uploads.get(database, "another") is None


async def test_an_announced_upload_is_one_request_s_to_fill_until_it_gives_up_or_its_time_is_over(database, clock):
    key = await new_key(database)
    await uploads.create(database, Upload("name", key.id, "a.png", "image/png", 9, 5, stored=False))
    first = await uploads.claim(database, "name", 60)
    assert await uploads.claim(database, "name", 60) is None
    await uploads.release(database, "name", first, "image/png")
    second = await uploads.claim(database, "name", 60)
    clock.now += 60.001
    third = await uploads.claim(database, "name", 60)
    assert not await uploads.mark_stored(database, "name", second, "image/png", 8)
    await uploads.release(database, "name", second, "image/png")
    assert await uploads.mark_stored(database, "name", third, "image/png", 9)


async def test_what_a_key_has_announced_is_not_filled_once_it_is_revoked(database):
    key = await new_key(database)
    await uploads.create(database, Upload("name", key.id, "a.png", "image/png", 9, 5, stored=False))
    announced = await uploads.get(database, "name")
    assert await uploads.get(database, "name", of_valid_key=True) == announced is not None
    await keys.revoke(database, key.id)
    assert await uploads.get(database, "name", of_valid_key=True) is None
    assert await uploads.get(database, "name") == announced
    assert await uploads.claim(database, "name", 60) is None
