"""Keys: found by their secret, stored as a hash."""

import asyncio
import re

import pytest
import sqlalchemy as sa
from store_calls import submit

from hidream.errors import ConfigurationError, InvalidInput, NotFound
from hidream.store import audit_log, keys
from hidream.store.database import Database
from hidream.store.keys import Limits, Scope
from hidream.store.schema import KEYS
from hidream.types import PRIORITY_MAX


async def test_a_key_is_found_by_its_secret_only(database):
    key, secret = await keys.create(database, "mine")
    assert re.fullmatch(r"hd_[A-Za-z0-9_-]{43}", secret)
    assert await keys.find(database, secret) == key
    assert await keys.find(database, secret[:-1]) is None
    assert await keys.find(database, key.id) is None
    assert await keys.find(database, "") is None


async def test_the_secret_is_not_in_the_database(url, clock, tmp_path):
    async with Database.open(url, clock) as database:
        key, secret = await keys.create(database, "mine")
        rotated = await keys.rotate(database, key.id)
        async with database.read() as connection:
            row = (await connection.execute(sa.select(KEYS))).one()
        assert not any(isinstance(value, str) and (secret in value or rotated in value) for value in row)
    secrets = secret, rotated
    assert not any(secret.encode() in f.read_bytes() for f in tmp_path.glob("hidream.db*") for secret in secrets)


async def test_a_revoked_key_is_listed_but_not_found(database):
    key, secret = await keys.create(database, "old")
    kept, _ = await keys.create(database, "new")
    await keys.revoke(database, key.id)
    first = await keys.list_keys(database)
    await keys.revoke(database, key.id)
    assert await keys.list_keys(database) == first, "the time of the first revocation stays"
    assert {listed.id for listed in first if listed.revoked_ms is None} == {kept.id}
    assert await keys.find(database, secret) is None


async def test_revoking_what_is_not_there(database):
    with pytest.raises(NotFound, match="'nobody'"):
        await keys.revoke(database, "nobody")


async def test_the_operators_own_key_is_registered_once_and_stays_revoked(database):
    for _ in range(2):
        await keys.register(database, "HIDREAM_API_KEY", "päss wörd")
    (key,) = await keys.list_keys(database)
    assert await keys.find(database, "päss wörd") == key
    await keys.revoke(database, key.id)
    await keys.register(database, "HIDREAM_API_KEY", "päss wörd")
    assert await keys.find(database, "päss wörd") is None
    async with database.read() as connection:
        assert (await connection.execute(sa.text("SELECT count(*) FROM keys"))).scalar() == 1


async def test_what_a_key_may_is_kept(database):
    limits = Limits(requests_per_minute=60, tasks_max=4, pixels_per_day=10**12)
    key, secret = await keys.create(database, "robot", {Scope.READ}, limits, -3)
    assert await keys.find(database, secret) == key
    assert key.priority == -3
    assert (key.limits, key.may(Scope.READ), key.may(Scope.SUBMIT)) == (limits, True, False)
    usual, _ = await keys.create(database, "usual")
    assert {scope for scope in Scope if usual.may(scope)} == {Scope.SUBMIT, Scope.VIEW, Scope.READ}
    looks, _ = await keys.create(database, "dashboard", {Scope.VIEW})
    assert {scope for scope in Scope if looks.may(scope)} == {Scope.VIEW}
    boss, _ = await keys.create(database, "boss", {Scope.ADMIN})
    assert all(boss.may(scope) for scope in Scope)


async def test_limits_of_a_key_can_be_changed(database):
    key, secret = await keys.create(database, "robot", limits=Limits(tasks_max=4, steps_max=30))
    beside, _ = await keys.create(database, "beside")
    await keys.set_limits(database, key.id, {"steps_max": 0, "work_per_day": 9})
    changed = (await keys.find(database, secret)).limits
    assert changed == Limits(tasks_max=4, steps_max=0, work_per_day=9)
    assert next(each for each in await keys.list_keys(database) if each.id == beside.id) == beside
    with pytest.raises(NotFound):
        await keys.set_limits(database, "nobody", {"steps_max": 1})


async def test_the_priority_of_a_key_can_be_changed_within_its_range(database):
    key, secret = await keys.create(database, "robot", limits=Limits(steps_max=30))
    assert key.priority == 0
    await keys.set_limits(database, key.id, {"tasks_max": 2}, priority=PRIORITY_MAX)
    await keys.set_limits(database, key.id, {"steps_max": 9})
    changed = await keys.find(database, secret)
    assert (changed.priority, changed.limits) == (PRIORITY_MAX, Limits(tasks_max=2, steps_max=9))
    assert {"tasks_max": 2, "priority": 4} in [act.details for act in await audit_log.entries(database)]
    for priority in (PRIORITY_MAX + 1, -PRIORITY_MAX - 1):
        with pytest.raises(InvalidInput, match=f"priority is {priority}; accepted: a whole number from -4 to 4"):
            await keys.set_limits(database, key.id, {"tasks_max": 3}, priority=priority)
        with pytest.raises(InvalidInput, match=f"priority is {priority}"):
            await keys.create(database, "other", priority=priority)
    assert await keys.list_keys(database) == [changed]


async def test_a_digest_is_valid_until_its_secret_is_not(database):
    made = [await keys.create(database, name, pepper="salt") for name in ("kept", "revoked", "rotated")]
    digests = [keys.digest_of(secret, "salt") for _, secret in made]
    assert await keys.valid_digests(database, [*digests, "unknown"]) == set(digests)
    await keys.revoke(database, made[1][0].id)
    await keys.rotate(database, made[2][0].id, pepper="salt")
    assert await keys.valid_digests(database, digests) == {digests[0]}
    assert await keys.valid_digests(database, []) == set()


async def test_keys_are_listed_the_oldest_first(database, clock):
    names = [f"{n * 7 % 10}" for n in range(10)]  # in no other order, and ids are random
    for name in names:
        await keys.create(database, name)
        clock.now += 1
    assert [key.name for key in await keys.list_keys(database)] == names


async def test_a_rotated_key_is_the_same_key_with_another_secret(database):
    key, old = await keys.create(database, "mine")
    beside, unchanged = await keys.create(database, "beside")
    new = await keys.rotate(database, key.id)
    assert await keys.find(database, new) == key
    assert await keys.find(database, old) is None
    assert await keys.find(database, unchanged) == beside
    with pytest.raises(NotFound):
        await keys.rotate(database, "nobody")


async def test_a_secret_opens_only_with_the_pepper_it_was_made_with(database):
    _, secret = await keys.create(database, "mine", pepper="salt")
    assert await keys.find(database, secret, pepper="salt")
    assert await keys.find(database, secret) is None
    assert await keys.find(database, secret, pepper="sugar") is None


PEPPERS = ["", "a pepper of the operator's", "another pepper, as long"]


@pytest.mark.parametrize(("mine", "other"), [PEPPERS[:2], PEPPERS[1::-1], PEPPERS[1:]])
async def test_another_pepper_is_refused_until_the_keys_of_the_first_are_revoked(database, mine, other):
    await keys.check_pepper(database, other)
    key, _ = await keys.create(database, "mine", pepper=mine)
    await keys.register(database, "chosen", "chosen by the operator", pepper=mine)
    await keys.check_pepper(database, mine)
    before = await keys.list_keys(database)
    for refused in (
        keys.check_pepper(database, other),
        keys.create(database, "new", pepper=other),
        keys.register(database, "chosen", "chosen by the operator", pepper=other),
        keys.rotate(database, key.id, pepper=other),
    ):
        with pytest.raises(ConfigurationError) as raised:
            await refused
        assert raised.value.message.startswith("[store] key_pepper (HIDREAM_STORE_KEY_PEPPER) is ")
        assert "none of them (2) would be known" in raised.value.message
        assert "`hidream keys revoke ID`" in raised.value.message
        assert not any(pepper in raised.value.message for pepper in PEPPERS if pepper)
        assert ("accepted: that pepper" in raised.value.message) is (mine != "")
    assert await keys.list_keys(database) == before
    for each in before:
        await keys.revoke(database, each.id)
    await keys.check_pepper(database, other)
    _, secret = await keys.create(database, "new", pepper=other)
    assert await keys.find(database, secret, pepper=other)
    with pytest.raises(ConfigurationError):
        await keys.check_pepper(database, mine)


async def test_a_key_of_an_older_release_tells_its_pepper_when_it_is_used(database):
    _, secret = await keys.create(database, "old", pepper=PEPPERS[1])
    async with database.write() as connection:
        await connection.execute(sa.update(KEYS).values(pepper_check=None))
    for pepper in PEPPERS:  # nobody can know
        await keys.check_pepper(database, pepper)
    for pepper in ("", PEPPERS[2]):
        assert await keys.find(database, secret, pepper=pepper) is None
        await keys.check_pepper(database, pepper)
    assert await keys.find(database, secret, pepper=PEPPERS[1])
    await keys.check_pepper(database, PEPPERS[1])
    for pepper in ("", PEPPERS[2]):
        with pytest.raises(ConfigurationError, match="key_pepper"):
            await keys.check_pepper(database, pepper)


async def test_the_operators_key_of_an_older_release_tells_its_pepper_at_the_start(database):
    await keys.register(database, "HIDREAM_API_KEY", "x", pepper=PEPPERS[1])
    async with database.write() as connection:
        await connection.execute(sa.update(KEYS).values(pepper_check=None))
    await keys.register(database, "HIDREAM_API_KEY", "x", pepper=PEPPERS[1])
    assert len(await keys.list_keys(database)) == 1
    with pytest.raises(ConfigurationError, match="key_pepper"):
        await keys.check_pepper(database, PEPPERS[2])


async def test_of_two_processes_with_different_peppers_one_makes_a_key(url):
    async with Database.open(url) as one, Database.open(url) as other:
        ended = await asyncio.gather(
            *(keys.create(database, "first", pepper=p) for database, p in ((one, PEPPERS[1]), (other, PEPPERS[2]))),
            *(keys.register(database, "mine", "x", pepper=p) for database, p in ((other, ""), (one, PEPPERS[2]))),
            return_exceptions=True,
        )
    assert 1 <= sum(isinstance(each, ConfigurationError) for each in ended) <= 3
    assert all(isinstance(each, ConfigurationError | tuple | None) for each in ended)
    assert not (isinstance(ended[0], tuple) and isinstance(ended[1], tuple))

    async with Database.open(url) as database, database.read() as connection:
        checks = (await connection.execute(sa.select(KEYS.c.pepper_check))).scalars().all()
    assert len(set(checks)) == 1


async def test_a_key_is_taken_back_unless_it_was_used(database):
    used, secret = await keys.create(database, "used")
    await submit(database, used)
    unused, forgotten = await keys.create(database, "unused")
    assert not await keys.delete_unused(database, used.id)
    assert await keys.delete_unused(database, unused.id)
    assert not await keys.delete_unused(database, unused.id)
    assert await keys.list_keys(database) == [used]
    assert await keys.find(database, secret) == used
    assert await keys.find(database, forgotten) is None


async def test_how_secrets_are_hashed_stays_so(database):
    """Another way would make every key worthless that there is."""
    plain = "0f13ed10fdf0e20958e9c45e399c64c25b4954985ba4403b00fa5eaa3d4bcbb3"
    peppered = "66d3e9b2efaedc48356f1a8cbaca240a0bc8b0c5d42fc5823f556a29d1a58a13"

    for pepper, digest in (("", plain), (PEPPERS[1], peppered)):
        async with database.write() as connection:
            await connection.execute(sa.delete(KEYS))
            row = {"id": "k", "name": "mine", "hash": digest, "created_ms": 0}
            await connection.execute(sa.insert(KEYS).values(row))
        assert await keys.find(database, "hd_secret", pepper=pepper)
