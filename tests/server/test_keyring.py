"""Keys that were seen lately: no look-up, but for a second at most."""

import asyncio
from dataclasses import dataclass

from hidream.server.keyring import KEYS_MAX, REMEMBERED_S, Keyring
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
