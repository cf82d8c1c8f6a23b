"""A worker's heartbeats, and who receives them."""

import asyncio
import os
import socket

import pytest

from hidream.store.workers import LOADED
from hidream.worker import heartbeat


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(heartbeat.systemd, "EVERY_S", 0.01)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)


async def test_the_parent_hears_it_load_and_then_live(quick):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        loaded, loop = asyncio.Event(), asyncio.get_running_loop()
        beating = asyncio.create_task(heartbeat.send_heartbeats(theirs.fileno(), loaded))
        async with asyncio.timeout(10):
            assert set(await loop.sock_recv(ours, 1)) == set(heartbeat.LOADING)
            loaded.set()
            while LOADED not in await loop.sock_recv(ours, 100):
                pass
        beating.cancel()
        await asyncio.wait([beating])


async def test_neither_a_parent_that_does_not_listen_nor_one_that_is_gone_holds_it_up(monkeypatch):
    ours, theirs = socket.socketpair()
    with theirs:
        beats = 0

        def count(_):
            nonlocal beats
            beats += 1

        monkeypatch.setattr(heartbeat.systemd, "EVERY_S", 0)
        monkeypatch.setattr(heartbeat.systemd, "notify", count)
        beating = asyncio.create_task(heartbeat.send_heartbeats(theirs.fileno(), asyncio.Event()))
        async with asyncio.timeout(20):
            while beats < 2000:  # more than a socket's buffer has room for
                await asyncio.sleep(0)
            ours.close()
            while beats < 2100:
                await asyncio.sleep(0)
        beating.cancel()
        await asyncio.wait([beating])


def test_a_standard_input_that_is_no_socket_is_left_alone():
    reading, writing = os.pipe()
    try:
        assert heartbeat._socket(reading) is None
    finally:
        os.close(reading)
        os.close(writing)


async def test_systemd_hears_it_too_and_waits_less_once_it_has_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "300000000")

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        loaded, loop = asyncio.Event(), asyncio.get_running_loop()
        beating = asyncio.create_task(heartbeat.send_heartbeats(None, loaded))
        async with asyncio.timeout(10):
            assert await loop.sock_recv(manager, 100) == b"WATCHDOG=1"
            loaded.set()
            while await loop.sock_recv(manager, 100) != b"WATCHDOG_USEC=30000000":
                pass
        beating.cancel()
        await asyncio.wait([beating])
