"""Waiting until another process, or another connection of this one, has written to the database.

The database's version is a counter that every commit moves. It says that something changed, never what: whoever
waits looks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

POLL_S = 0.005
"""How often a waiter reads the version: twice the mean delay of a wake-up. Reading takes microseconds."""


class Changes:
    """What moves in the database; `read_version` must return at once.

    To miss nothing, ask `now()` first, then look at the data, then wait `since()` that answer.
    """

    def __init__(self, read_version: Callable[[], int]) -> None:
        self.version = read_version
        self.stopped = False

    async def wait_after(self, seen: int, timeout_s: float, poll_s: float = POLL_S) -> None:
        """Return once something was committed after `now()` said `seen`, after `timeout_s`, or on `stop`.

        Who is in no hurry says so by a longer `poll_s`: reading costs little, but waking up for it hundreds of times a
        second costs more.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_s
        while not self.stopped and self.version() == seen and clock() < deadline:  # noqa: ASYNC110 - other processes
            await asyncio.sleep(poll_s)

    def stop(self) -> None:
        """End every wait, now and from now on: this process is about to leave."""
        self.stopped = True
