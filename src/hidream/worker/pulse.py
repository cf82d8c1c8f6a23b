"""Saying once a second that this process's event loop runs: to the parent that started it, and to systemd.

A process that stands still, stopped by a signal or for ever within one call, says nothing; whoever hears nothing ends
it, and with it whatever it holds: its tasks, and the database's lock. It is said through a socket and not through the
database, so that a worker that waits for that lock is not taken for the one that has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat

from hidream.store.workers import LOADED

EVERY_S = 1.0
LOADING = b"l"
"""What is said as long as it loads, which may keep the loop from running for minutes; then it is `workers.LOADED`."""


async def beat(parent: int | None, loaded: asyncio.Event) -> None:
    """Say it until cancelled; `parent` is the descriptor of a socket, None is nobody."""
    line = None if parent is None else _line(parent)
    while True:
        if line is not None:
            with contextlib.suppress(OSError):  # full or closed: that the parent has ended is noticed elsewhere
                line.send(LOADED if loaded.is_set() else LOADING, socket.MSG_DONTWAIT)
        with contextlib.suppress(OSError):
            notify_systemd("WATCHDOG=1")
        await asyncio.sleep(EVERY_S)


def notify_systemd(words: str) -> None:
    """Tell the service manager that has started this process, if one has (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        if address.startswith("@"):  # in Linux' abstract name space
            address = "\0" + address[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.setblocking(False)
            systemd.sendto(words.encode(), address)


def _line(descriptor: int) -> socket.socket | None:
    """Open the descriptor as a socket; None if it is none."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return None
    return socket.socket(fileno=os.dup(descriptor))
