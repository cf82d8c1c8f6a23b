"""Recently used keys need no query, for at most a second."""

import asyncio

import pytest

from fakes import Clock
from hidream.errors import TooMany
from hidream.server.key_cache import KEYS_MAX, REFRESH_S, TTL_S, ApiKeyCache
from hidream.server.limits.failed_auth import ADDRESSES_MAX, BURST, DELAYED_MAX, PER_S, FailedAuthThrottle
from hidream.store import keys
from hidream.store.database import Database


@pytest.fixture
async def database(tmp_path):
    async with Database.open(f"sqlite+aiosqlite:///{tmp_path}/hidream.db") as database:
        yield database


@pytest.fixture
def clock():
    return Clock(100.0)


@pytest.fixture
async def created(database):
    """A key and its secret."""
    return await keys.create(database, "test", pepper="pepper")


@pytest.fixture
def key_cache(database, clock, created):
    return ApiKeyCache(database, "pepper", clock)


@pytest.fixture
def key(created):
    return created[0]


@pytest.fixture
def secret(created):
    return created[1]


async def test_a_revoked_key_is_known_for_a_second_at_most(database, key_cache, clock, key, secret):
    assert await key_cache.find(secret) == key
    await keys.revoke(database, key.id)
    clock.now += TTL_S - 0.001
    assert await key_cache.find(secret) == key
    clock.now += 0.001
    assert await key_cache.find(secret) is None
    assert await key_cache.find(secret) is None


async def test_a_key_in_use_is_looked_up_before_its_time_is_over(database, key_cache, clock, key, secret):
    assert await key_cache.find(secret) == key
    for _ in range(3):
        clock.now += TTL_S - REFRESH_S / 2
        assert await key_cache.find(secret) == key
        (looking,) = key_cache._lookups.values()
        await looking
    await keys.revoke(database, key.id)
    clock.now += TTL_S - REFRESH_S / 2
    assert await key_cache.find(secret) == key
    (looking,) = key_cache._lookups.values()
    await looking
    assert await key_cache.find(secret) is None


async def test_a_crowd_with_the_same_key_costs_one_look_up(key_cache, key, secret, monkeypatch):
    looked = []
    find = keys.find

    async def counted(database, secret, *, pepper):
        looked.append(secret)
        return await find(database, secret, pepper=pepper)

    monkeypatch.setattr(keys, "find", counted)

    first = asyncio.create_task(key_cache.find(secret))
    found = [asyncio.create_task(key_cache.find(secret)) for _ in range(100)]
    await asyncio.sleep(0)
    first.cancel()
    assert [await task for task in found] == [key] * 100
    assert (looked, key_cache._lookups) == ([secret], {})
    assert await asyncio.gather(*(key_cache.find("wrong") for _ in range(9))) == [None] * 9


async def test_a_key_that_is_made_is_known_at_once(database, key_cache):
    assert await key_cache.find("chosen by the operator") is None
    await keys.register(database, "chosen", "chosen by the operator", pepper="pepper")
    assert (await key_cache.find("chosen by the operator")).name == "chosen"


async def test_another_pepper_knows_no_key(database, clock, secret):
    assert await ApiKeyCache(database, "salt", clock).find(secret) is None
    assert await ApiKeyCache(database, "", clock).find(secret) is None


async def test_what_is_remembered_is_bounded_and_holds_no_secret(key_cache, key, secret):
    for i in range(20):
        await key_cache.find(f"guess {i}")
    assert not key_cache._cached
    await key_cache.find(secret)
    assert secret not in repr(key_cache._cached)
    (remembered,) = key_cache._cached.values()
    (name,) = key_cache._cached
    for i in range(KEYS_MAX + 1):
        key_cache._cached[bytes([i % 256, i // 256])] = remembered
        await key_cache.find(secret)
    assert len(key_cache._cached) == KEYS_MAX
    assert name in key_cache._cached, "a key in use stays"
    key_cache._cached.update({bytes([i % 256, i // 256]): remembered for i in range(KEYS_MAX)})
    assert name not in key_cache._cached
    assert await key_cache.find(secret) == key
    assert len(key_cache._cached) == KEYS_MAX


async def test_wrong_keys_are_slowed_down_by_address_and_right_ones_never(key_cache, clock, key, secret):
    key_cache._failed_auth = FailedAuthThrottle(clock, delay_s=3600)
    for i in range(BURST):
        assert await key_cache.find(f"guess {i}", "192.0.2.1") is None
    waiting = [asyncio.create_task(key_cache.find(f"more {i}", "192.0.2.1")) for i in range(3)]
    async with asyncio.timeout(20):
        while key_cache._failed_auth._waiting < len(waiting):
            await asyncio.sleep(0.01)
    assert await key_cache.find(secret, "192.0.2.1") == key
    clock.now += TTL_S
    assert await key_cache.find(secret, "192.0.2.1") == key  # looked up again
    assert await key_cache.find("guess", "192.0.2.2") is None
    assert await key_cache.find("guess", "2001:db8::1") is None
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    clock.now += BURST / PER_S
    assert await key_cache.find("guess", "192.0.2.1") is None


async def test_too_many_wrong_keys_are_a_429_that_says_when_to_come_back():
    clock = Clock(100.0)
    throttle = FailedAuthThrottle(clock, delay_s=0)
    for _ in range(BURST):
        await throttle.failed("2001:db8:0:1::1")
    with pytest.raises(TooMany, match="not known") as raised:
        await throttle.failed("2001:db8:0:1:ffff::2")  # the same network
    assert raised.value.retry_after_s == 1
    await throttle.failed("2001:db8:0:2::1")
    await throttle.failed("::ffff:192.0.2.1")
    clock.now += 1
    await throttle.failed("2001:db8:0:1::1")
    with pytest.raises(TooMany):
        await throttle.failed("2001:db8:0:1::1")


async def test_addresses_and_delays_are_bounded():
    throttle = FailedAuthThrottle(Clock(100.0), delay_s=3600)
    for i in range(ADDRESSES_MAX + 10):
        await throttle.failed(f"10.0.{i // 256}.{i % 256}")
    assert len(throttle._left) == ADDRESSES_MAX
    for _ in range(BURST):
        await throttle.failed("192.0.2.1")
    waiting = [asyncio.create_task(throttle.failed("192.0.2.1")) for _ in range(DELAYED_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(TooMany):
        await throttle.failed("192.0.2.1")  # at once
    for task in waiting:
        assert task.cancel()
    await asyncio.wait(waiting)
    assert throttle._waiting == 0
