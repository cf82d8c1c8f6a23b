"""Heartbeats: once a second, this process tells its parent and systemd that its event loop runs.

A process that is stopped by a signal, or hangs in a call, sends none. Its parent or systemd then ends it, which
releases its tasks and its lock on the database. Heartbeats go through a socket and not through the database, so that a
worker that waits for the lock is not mistaken for the one that holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat

from hidream import systemd
from hidream.store.workers import LOADED

LOADING = b"l"
"""The heartbeat while models are loaded, which may block the loop for minutes; later it is `workers.LOADED`."""
SILENT_S = 30.0
"""The watchdog timeout of systemd once models are loaded; until then the unit's own applies."""


async def send_heartbeats(parent: int | None, loaded: asyncio.Event) -> None:
    """Send heartbeats until cancelled; `parent` is the descriptor of a socket, or None without a parent."""
    connection = None if parent is None else _socket(parent)

    def notify_parent() -> None:
        if connection is not None:
            with contextlib.suppress(OSError):  # full or closed: the end of the parent is detected elsewhere
                connection.send(LOADED if loaded.is_set() else LOADING, socket.MSG_DONTWAIT)

    shortening = asyncio.create_task(_shorten_watchdog(loaded))
    try:
        await systemd.beat(notify_parent)
    finally:
        shortening.cancel()
        if connection is not None:
            connection.close()


async def _shorten_watchdog(loaded: asyncio.Event) -> None:
    await loaded.wait()
    if "WATCHDOG_USEC" in os.environ:
        systemd.notify(f"WATCHDOG_USEC={round(SILENT_S * 1e6)}")


def _socket(descriptor: int) -> socket.socket | None:
    """Open the descriptor as a socket; None if it is not one."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return None
    return socket.socket(fileno=os.dup(descriptor))
