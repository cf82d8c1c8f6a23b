"""Uploads: announced, then stored once."""

from asking import new_key

from hidream.store import uploads
from hidream.store.uploads import Upload


def test_an_upload_is_announced_and_then_stored_once(in_database):
    async def scenario(database):
        key = await new_key(database)
        announced = Upload("name", key.id, "my “cat”.png", "image/png", 0, 5, stored=False)
        await uploads.announce(database, announced)
        assert await uploads.get(database, "name") == announced
        assert await uploads.store(database, "name", "image/webp", 2**33)
        assert not await uploads.store(database, "name", "image/png", 1)
        assert not await uploads.store(database, "another", "image/png", 1)
        assert await uploads.get(database, "name") == Upload(
            "name", key.id, "my “cat”.png", "image/webp", 2**33, 5, stored=True
        )
        assert await uploads.get(database, "another") is None

    in_database(scenario)
