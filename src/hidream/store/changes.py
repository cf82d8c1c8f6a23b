"""Waiting for a commit by another process, or by another connection of this one.

Every commit increases the database's version. The version does not say what changed: after it has moved, a waiter
queries the data again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

POLL_S = 0.005
"""How often a waiter reads the version: twice the mean delay of a wake-up. A read takes microseconds."""


class Changes:
    """The database's version; `read_version` must return at once.

    To miss no change, call `version()`, query the data, and then call `wait_after()` with that version.
    """

    def __init__(self, read_version: Callable[[], int]) -> None:
        self.version = read_version
        self.stopped = False

    async def wait_after(self, seen: int, timeout_s: float, poll_s: float = POLL_S) -> None:
        """Return when the version is no longer `seen`, after `timeout_s`, or on `stop`.

        A longer `poll_s` saves wake-ups, hundreds of which a second cost more than the reads.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_s
        while not self.stopped and self.version() == seen and clock() < deadline:  # noqa: ASYNC110 - other processes
            await asyncio.sleep(poll_s)

    def stop(self) -> None:
        """End all waits, present and future: this process is shutting down."""
        self.stopped = True
