"""Keys: found by their secret, kept by their hash."""

import asyncio
import re

import pytest
import sqlalchemy as sa

from hidream.errors import NotFound
from hidream.store import keys
from hidream.store.keys import Limits, Scope
from hidream.store.schema import KEYS


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
        key, secret = await keys.create(database, "mine")
        rotated = await keys.rotate(database, key.id)
        async with database.read() as connection:
            row = (await connection.execute(sa.select(KEYS))).one()
        assert not any(isinstance(value, str) and (secret in value or rotated in value) for value in row)
        return secret, rotated

    secrets = in_database(scenario)
    assert not any(secret.encode() in f.read_bytes() for f in tmp_path.glob("hidream.db*") for secret in secrets)


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


def test_what_a_key_may_is_kept(in_database):
    async def scenario(database):
        limits = Limits(requests_per_minute=60, tasks_max=4, pixels_per_day=10**12)
        key, secret = await keys.create(database, "robot", {Scope.READ}, limits)
        assert await keys.find(database, secret) == key
        assert (key.limits, key.may(Scope.READ), key.may(Scope.SUBMIT)) == (limits, True, False)
        usual, _ = await keys.create(database, "usual")
        assert [usual.may(scope) for scope in Scope] == [True, True, False]
        boss, _ = await keys.create(database, "boss", {Scope.ADMIN})
        assert all(boss.may(scope) for scope in Scope)

    in_database(scenario)


def test_a_rotated_key_is_the_same_key_with_another_secret(in_database):
    async def scenario(database):
        key, old = await keys.create(database, "mine")
        new = await keys.rotate(database, key.id)
        assert await keys.find(database, new) == key
        assert await keys.find(database, old) is None
        with pytest.raises(NotFound):
            await keys.rotate(database, "nobody")

    in_database(scenario)


def test_a_secret_opens_only_with_the_pepper_it_was_made_with(in_database):
    async def scenario(database):
        _, secret = await keys.create(database, "mine", pepper="salt")
        assert await keys.find(database, secret, pepper="salt")
        assert await keys.find(database, secret) is None
        assert await keys.find(database, secret, pepper="sugar") is None

    in_database(scenario)


def test_all_who_ask_for_a_webhook_secret_get_the_same(in_database):
    async def scenario(database):
        key, _ = await keys.create(database, "mine")
        given = await asyncio.gather(*(keys.webhook_secret(database, key.id, f"fresh{i}") for i in range(8)))
        assert len(set(given)) == 1
        assert await keys.webhook_secret(database, key.id, "later") == given[0]

    in_database(scenario)
