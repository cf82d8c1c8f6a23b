"""Turns at the database for requests that read: a crowd of one key's waits here, and holds up nobody else's.

At most EACH of a key's look at the database at a time, and TOGETHER of all keys'; the others stand in line, each key's
in the order in which they came, and the keys take turns. Whoever has hung up when his turn comes is sent away before
anything is done for him: fifteen hundred listings that nobody waits for any more cost no query.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

EACH, TOGETHER = 3, 16
"""One key does not take all connections to SQLite (`store/sqlite.CONNECTIONS`); more at once would only wait there."""


class Gate:
    """One process's gate."""

    def __init__(self, each: int = EACH, together: int = TOGETHER) -> None:
        self._each, self._together = each, together
        self._inside: Counter[str] = Counter()
        self._total = 0
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}  # of each key; the first key is next

    @asynccontextmanager
    async def turn(self, key_id: str, request: Request | None = None) -> AsyncIterator[None]:
        """Run the block when it is this key's turn. With `request` raises ClientDisconnect if its client left before.

        The body of that request was read, if it has one.
        """
        if key_id not in self._lines and self._has_room(key_id):
            self._enter(key_id)
        else:
            await self._stand_in_line(key_id, request)
        try:
            yield
        finally:
            self._leave(key_id)

    async def _stand_in_line(self, key_id: str, request: Request | None) -> None:
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(key_id, deque()).append(called)
        try:
            await called
            if request is not None and await request.is_disconnected():
                raise ClientDisconnect
        except BaseException:
            if called.done() and not called.cancelled():
                self._leave(key_id)
            raise

    def _has_room(self, key_id: str) -> bool:
        return self._total < self._together and self._inside[key_id] < self._each

    def _enter(self, key_id: str) -> None:
        self._inside[key_id] += 1
        self._total += 1

    def _leave(self, key_id: str) -> None:
        self._inside[key_id] -= 1
        self._total -= 1
        if not self._inside[key_id]:
            del self._inside[key_id]
        while self._call_next():
            pass

    def _call_next(self) -> bool:
        """Let the first of the first key that has room enter, and put that key behind the others."""
        key_id = next((each for each in self._lines if self._has_room(each)), None)
        if key_id is None:
            return False
        line = self._lines.pop(key_id)
        called = line.popleft()
        if line:
            self._lines[key_id] = line
        if not called.cancelled():
            self._enter(key_id)
            called.set_result(None)
        return True
