"""Turns: so many at a time, so many of one key, in order, and not for ever."""

import asyncio

import pytest

from hidream.errors import TooMany
from hidream.server.turns import Turns


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_key_has_its_share_and_leaves_the_rest_to_others():
    async def scenario():
        turns, running, go = Turns(at_once=3, per_key=2), [], asyncio.Event()

        async def work(key):
            async with turns.turn(key):
                running.append(key)
                await go.wait()

        tasks = [asyncio.create_task(work(key)) for key in "aaaabb"]
        await settle()
        assert running == ["a", "a", "b"]
        go.set()
        await asyncio.gather(*tasks)
        assert sorted(running) == list("aaaabb")
        assert not turns._keys, "nothing is remembered of keys that ask for nothing"

    asyncio.run(scenario())


def test_who_waits_too_long_or_leaves_takes_nothing_with_him():
    async def scenario():
        turns = Turns(at_once=1, per_key=1, wait_s=0.01)
        async with turns.turn("a"):
            for key in "ab":
                with pytest.raises(TooMany) as raised:
                    async with turns.turn(key):
                        pass
                assert raised.value.retry_after_s == 5
            leaving = asyncio.create_task(turns.turn("b").__aenter__())
            await settle()
            leaving.cancel()
            await asyncio.wait([leaving])
        async with turns.turn("b"):
            pass

    asyncio.run(scenario())
