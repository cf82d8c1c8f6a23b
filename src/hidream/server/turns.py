"""Large things that come in: so many at a time in this process, so many of one key, the others wait their turn.

Each is on its way to a file, so that what it costs meanwhile is some disk, and not memory. Who waits is not read: its
bytes stay where they are, on their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hidream.errors import TooMany

AT_ONCE = 64
"""Of 16 to 20 MiB each; more would only slow each other down."""
PER_KEY = 16
WAIT_S = 30.0
"""The longest wait for a turn: below the minute after which most clients give up."""
RETRY_AFTER_S = 5


class Turns:
    """Turns of one kind, which are given in the order in which they are asked for, within a key and over all."""

    def __init__(self, at_once: int = AT_ONCE, per_key: int = PER_KEY, wait_s: float = WAIT_S) -> None:
        self._per_key, self._wait_s = per_key, wait_s
        self._all = asyncio.Semaphore(at_once)
        self._keys: dict[str, asyncio.Semaphore] = {}
        self._asking: dict[str, int] = {}

    @asynccontextmanager
    async def turn(self, key_id: str) -> AsyncIterator[None]:
        """Wait for a turn, and keep it for the block. Raises TooMany after `wait_s`."""
        mine = self._keys.setdefault(key_id, asyncio.Semaphore(self._per_key))
        self._asking[key_id] = self._asking.get(key_id, 0) + 1
        try:
            await self._acquire(mine)
            try:
                yield
            finally:
                self._all.release()
                mine.release()
        finally:
            self._asking[key_id] -= 1
            if not self._asking[key_id]:
                del self._asking[key_id], self._keys[key_id]

    async def _acquire(self, mine: asyncio.Semaphore) -> None:
        """Get both, or neither."""
        try:
            async with asyncio.timeout(self._wait_s):
                await mine.acquire()
                try:
                    await self._all.acquire()
                except BaseException:
                    mine.release()
                    raise
        except TimeoutError as error:
            raise TooMany("too many large bodies are under way; try again later", RETRY_AFTER_S) from error
