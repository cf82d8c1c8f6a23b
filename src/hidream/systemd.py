"""Watchdog notifications to systemd, if systemd started this process and expects them (sd_notify(3))."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

EVERY_S = 1.0


def notify(state: str) -> None:
    """Send a state to the service manager; do nothing if there is none, or it cannot be reached."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # in Linux's abstract namespace
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.setblocking(False)
        systemd.sendto(state.encode(), address)


async def beat(also: Callable[[], None] = lambda: None) -> None:
    """Tell systemd once a second that this event loop runs, until cancelled; a unit's WatchdogSec requires it.

    `also` is called at the same time, to notify another process.
    """
    while True:
        also()
        notify("WATCHDOG=1")
        await asyncio.sleep(EVERY_S)
