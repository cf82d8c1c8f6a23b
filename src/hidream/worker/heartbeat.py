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

from hidream import systemd
from hidream.store.workers import LOADED

LOADING = b"l"
"""What is said as long as it loads, which may keep the loop from running for minutes; then it is `workers.LOADED`."""
SILENT_S = 30.0
"""How long systemd bears silence from then on; until then, as long as the unit says."""


async def send_heartbeats(parent: int | None, loaded: asyncio.Event) -> None:
    """Say it until cancelled; `parent` is the descriptor of a socket, None is nobody."""
    line = None if parent is None else _line(parent)

    def tell() -> None:
        if line is not None:
            with contextlib.suppress(OSError):  # full or closed: that the parent has ended is noticed elsewhere
                line.send(LOADED if loaded.is_set() else LOADING, socket.MSG_DONTWAIT)

    telling = asyncio.create_task(_hurry(loaded))
    try:
        await systemd.beat(tell)
    finally:
        telling.cancel()
        if line is not None:
            line.close()


async def _hurry(loaded: asyncio.Event) -> None:
    await loaded.wait()
    if "WATCHDOG_USEC" in os.environ:
        systemd.notify(f"WATCHDOG_USEC={round(SILENT_S * 1e6)}")


def _line(descriptor: int) -> socket.socket | None:
    """Open the descriptor as a socket; None if it is none."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return None
    return socket.socket(fileno=os.dup(descriptor))
