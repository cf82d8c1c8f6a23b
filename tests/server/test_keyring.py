"""Keys that were seen lately: no look-up, but for a second at most."""

import asyncio
from dataclasses import dataclass

import pytest

from hidream.errors import TooMany
from hidream.server.guesses import ADDRESSES_MAX, BURST, PER_S, WAITING_MAX, Guesses
from hidream.server.keyring import AHEAD_S, KEYS_MAX, REMEMBERED_S, Keyring
from hidream.store import keys
from hidream.store.database import Database


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self):
        return self.now


def in_store(tmp_path, scenario):
    async def main():
        async with Database.open(f"sqlite+aiosqlite:///{tmp_path}/hidream.db") as database:
            clock = Clock()
            key, secret = await keys.create(database, "test", pepper="pepper")
            await scenario(database, Keyring(database, "pepper", clock), clock, key, secret)

    asyncio.run(main())


def test_a_revoked_key_is_known_for_a_second_at_most(tmp_path):
    async def scenario(database, keyring, clock, key, secret):
        assert await keyring.find(secret) == key
        await keys.revoke(database, key.id)
        clock.now += REMEMBERED_S - 0.001
        assert await keyring.find(secret) == key
        clock.now += 0.001
        assert await keyring.find(secret) is None
        assert await keyring.find(secret) is None

    in_store(tmp_path, scenario)


def test_a_key_in_use_is_looked_up_before_its_time_is_over(tmp_path):
    async def scenario(database, keyring, clock, key, secret):
        assert await keyring.find(secret) == key
        for _ in range(3):
            clock.now += REMEMBERED_S - AHEAD_S / 2
            assert await keyring.find(secret) == key
            (looking,) = keyring._looking.values()
            await looking
        await keys.revoke(database, key.id)
        clock.now += REMEMBERED_S - AHEAD_S / 2
        assert await keyring.find(secret) == key
        (looking,) = keyring._looking.values()
        await looking
        assert await keyring.find(secret) is None

    in_store(tmp_path, scenario)


def test_a_crowd_with_the_same_key_costs_one_look_up(tmp_path, monkeypatch):
    looked = []
    find = keys.find

    async def counted(database, secret, *, pepper):
        looked.append(secret)
        return await find(database, secret, pepper=pepper)

    monkeypatch.setattr(keys, "find", counted)

    async def scenario(database, keyring, clock, key, secret):
        first = asyncio.create_task(keyring.find(secret))
        found = [asyncio.create_task(keyring.find(secret)) for _ in range(100)]
        await asyncio.sleep(0)
        first.cancel()
        assert [await task for task in found] == [key] * 100
        assert (looked, keyring._looking) == ([secret], {})
        assert await asyncio.gather(*(keyring.find("wrong") for _ in range(9))) == [None] * 9

    in_store(tmp_path, scenario)


def test_a_key_that_is_made_is_known_at_once(tmp_path):
    async def scenario(database, keyring, clock, key, secret):
        assert await keyring.find("chosen by the operator") is None
        await keys.register(database, "chosen", "chosen by the operator", pepper="pepper")
        assert (await keyring.find("chosen by the operator")).name == "chosen"

    in_store(tmp_path, scenario)


def test_another_pepper_knows_no_key(tmp_path):
    async def scenario(database, keyring, clock, key, secret):
        assert await Keyring(database, "salt", clock).find(secret) is None
        assert await Keyring(database, "", clock).find(secret) is None

    in_store(tmp_path, scenario)


def test_what_is_remembered_is_bounded_and_holds_no_secret(tmp_path):
    async def scenario(database, keyring, clock, key, secret):
        for i in range(20):
            await keyring.find(f"guess {i}")
        assert not keyring._seen
        await keyring.find(secret)
        assert secret not in repr(keyring._seen)
        (remembered,) = keyring._seen.values()
        keyring._seen.update({bytes([i % 256, i // 256]): remembered for i in range(KEYS_MAX)})
        clock.now += 2
        await keyring.find(secret)
        assert len(keyring._seen) == 1

    in_store(tmp_path, scenario)


def test_wrong_keys_are_slowed_down_by_address_and_right_ones_never(tmp_path):
    async def scenario(database, keyring, clock, key, secret):
        keyring._guesses = Guesses(clock, delay_s=3600)
        for i in range(BURST):
            assert await keyring.find(f"guess {i}", "192.0.2.1") is None
        waiting = [asyncio.create_task(keyring.find(f"more {i}", "192.0.2.1")) for i in range(3)]
        async with asyncio.timeout(20):
            while keyring._guesses._waiting < len(waiting):
                await asyncio.sleep(0.01)
        assert await keyring.find(secret, "192.0.2.1") == key
        clock.now += REMEMBERED_S
        assert await keyring.find(secret, "192.0.2.1") == key  # looked up again
        assert await keyring.find("guess", "192.0.2.2") is None
        assert await keyring.find("guess", "2001:db8::1") is None
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        clock.now += BURST / PER_S
        assert await keyring.find("guess", "192.0.2.1") is None

    in_store(tmp_path, scenario)


def test_too_many_wrong_keys_are_a_429_that_says_when_to_come_back():
    async def scenario():
        clock = Clock()
        guesses = Guesses(clock, delay_s=0)
        for _ in range(BURST):
            await guesses.wrong("2001:db8:0:1::1")
        with pytest.raises(TooMany, match="not known") as raised:
            await guesses.wrong("2001:db8:0:1:ffff::2")  # the same network
        assert raised.value.retry_after_s == 1
        await guesses.wrong("2001:db8:0:2::1")
        await guesses.wrong("::ffff:192.0.2.1")
        clock.now += 1
        await guesses.wrong("2001:db8:0:1::1")
        with pytest.raises(TooMany):
            await guesses.wrong("2001:db8:0:1::1")

    asyncio.run(scenario())


def test_addresses_and_delays_are_bounded():
    async def scenario():
        guesses = Guesses(Clock(), delay_s=3600)
        for i in range(ADDRESSES_MAX + 10):
            await guesses.wrong(f"10.0.{i // 256}.{i % 256}")
        assert len(guesses._left) == ADDRESSES_MAX
        for _ in range(BURST):
            await guesses.wrong("192.0.2.1")
        waiting = [asyncio.create_task(guesses.wrong("192.0.2.1")) for _ in range(WAITING_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(TooMany):
            await guesses.wrong("192.0.2.1")  # at once
        for task in waiting:
            assert task.cancel()
        await asyncio.wait(waiting)
        assert guesses._waiting == 0

    asyncio.run(scenario())
