"""Telling systemd that this process lives, where systemd has started it and wants to know (sd_notify(3))."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

EVERY_S = 1.0


def notify(words: str) -> None:
    """Tell the service manager; where there is none, or it cannot be told, nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # in Linux' abstract name space
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.setblocking(False)
        systemd.sendto(words.encode(), address)


async def beat(also: Callable[[], None] = lambda: None) -> None:
    """Say once a second that this event loop runs, until cancelled: a unit's WatchdogSec waits for it.

    `also` says it to somebody else.
    """
    while True:
        also()
        notify("WATCHDOG=1")
        await asyncio.sleep(EVERY_S)
