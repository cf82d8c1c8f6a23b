"""The bridge: one thread, outcomes come back, and giving up does not wait."""

import asyncio
import threading

import pytest

from hidream.errors import Interrupted
from hidream.worker.bridge import Bridge


def test_what_the_function_returns_or_raises_comes_back():
    async def scenario():
        bridge, never = Bridge(), asyncio.Event()
        assert await bridge.run(lambda: 7, never) == 7
        with pytest.raises(ZeroDivisionError):
            await bridge.run(lambda: 1 // 0, never)
        assert not bridge.busy

    asyncio.run(scenario())


def test_everything_runs_on_the_same_other_thread():
    async def scenario():
        bridge, never = Bridge(), asyncio.Event()
        threads = await asyncio.gather(*(bridge.run(threading.get_ident, never) for _ in range(5)))
        assert len(set(threads)) == 1
        assert threads[0] != threading.get_ident()

    asyncio.run(scenario())


def test_giving_up_does_not_wait_for_the_thread(until):
    async def scenario():
        bridge, given_up, released = Bridge(), asyncio.Event(), threading.Event()
        running = asyncio.create_task(bridge.run(released.wait, given_up))
        await asyncio.sleep(0)
        given_up.set()
        with pytest.raises(Interrupted):
            await running
        assert bridge.busy
        released.set()
        await until(lambda: not bridge.busy)

    asyncio.run(scenario())


def test_an_error_after_giving_up_disturbs_nobody(until, caplog):
    async def scenario():
        bridge, given_up, released = Bridge(), asyncio.Event(), threading.Event()

        def fail_later():
            released.wait()
            raise ValueError("too late")

        running = asyncio.create_task(bridge.run(fail_later, given_up))
        await asyncio.sleep(0)
        given_up.set()
        with pytest.raises(Interrupted):
            await running
        released.set()
        await until(lambda: not bridge.busy)

    asyncio.run(scenario())
    assert not caplog.records
