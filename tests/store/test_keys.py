"""Keys: found by their secret, kept by their hash."""

import re

import pytest
import sqlalchemy as sa

from hidream.errors import NotFound
from hidream.store import keys


def test_a_key_is_found_by_its_secret_only(in_database):
    async def scenario(database):
        key, secret = await keys.create(database, "mine")
        assert re.fullmatch(r"hd_[A-Za-z0-9_-]{43}", secret)
        assert await keys.find(database, secret) == key
        assert await keys.find(database, secret[:-1]) is None
        assert await keys.find(database, key.id) is None
        assert await keys.find(database, "") is None

    in_database(scenario)


def test_the_secret_is_not_in_the_database(in_database, tmp_path):
    async def scenario(database):
        return (await keys.create(database, "mine"))[1]

    secret = in_database(scenario)
    files = list(tmp_path.glob("hidream.db*"))
    assert files
    assert not any(secret.encode() in file.read_bytes() for file in files)


def test_a_revoked_key_is_listed_but_not_found(in_database):
    async def scenario(database):
        key, secret = await keys.create(database, "old")
        kept, _ = await keys.create(database, "new")
        await keys.revoke(database, key.id)
        first = await keys.listed(database)
        await keys.revoke(database, key.id)
        assert await keys.listed(database) == first, "the time of the first revocation stays"
        assert {listed.id for listed in first if listed.revoked_ms is None} == {kept.id}
        assert await keys.find(database, secret) is None

    in_database(scenario)


def test_revoking_what_is_not_there(in_database):
    async def scenario(database):
        with pytest.raises(NotFound, match="'nobody'"):
            await keys.revoke(database, "nobody")

    in_database(scenario)


def test_the_operators_own_key_is_registered_once_and_stays_revoked(in_database):
    async def scenario(database):
        for _ in range(2):
            await keys.register(database, "HIDREAM_API_KEY", "päss wörd")
        (key,) = await keys.listed(database)
        assert await keys.find(database, "päss wörd") == key
        await keys.revoke(database, key.id)
        await keys.register(database, "HIDREAM_API_KEY", "päss wörd")
        assert await keys.find(database, "päss wörd") is None
        async with database.read() as connection:
            assert (await connection.execute(sa.text("SELECT count(*) FROM keys"))).scalar() == 1

    in_database(scenario)
