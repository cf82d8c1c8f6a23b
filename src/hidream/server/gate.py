"""Turns at what this process has little of: a crowd of one key's waits here, and holds up nobody else's.

So many of a key are inside at a time, and so many of all keys; the others stand in line, each key's in the order in
which they came, and the keys take turns. Whoever has hung up when his turn comes is sent away before anything is done
for him: fifteen hundred listings that nobody waits for any more cost no query.

Requests that read pass one on their way to the database. Large things that come in, and files that are fetched, pass
others: each is on its way to a file, and whoever waits is not read meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from hidream.errors import TooMany

EACH, TOGETHER = 3, 16
"""One key does not take all connections to SQLite (`store/sqlite.CONNECTIONS`); more at once would only wait there."""
LARGE_TOGETHER = 64
"""Bodies, or fetched files, of 16 to 20 MiB each; more would only slow each other down."""
WAIT_S = 30.0
"""The longest wait for their turn: below the minute after which most clients give up."""
RETRY_AFTER_S = 5


class Gate:
    """One process's gate, for `together` of all keys' and `each` of a key's.

    Without `each` a key may have one more while it has fewer than are free: alone half of them, and some are left for
    the next. Whoever waits longer than `wait_s` gets a TooMany that says what is `full`.
    """

    def __init__(
        self, each: int | None = EACH, together: int = TOGETHER, wait_s: float | None = None, full: str = ""
    ) -> None:
        self._each, self._together, self._wait_s, self._full = each, together, wait_s, full
        self._inside: Counter[str] = Counter()
        self._total = 0
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}  # of each key; the first key is next

    @asynccontextmanager
    async def turn(self, key_id: str, request: Request | None = None) -> AsyncIterator[None]:
        """Run the block when it is this key's turn. Raises TooMany if that takes too long.

        With `request`, whose body was read if it has one, raises ClientDisconnect if its client left before.
        """
        if key_id not in self._lines and self._has_room(key_id):
            self._enter(key_id)
        else:
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._stand_in_line(key_id, request)
            except TimeoutError as error:
                raise TooMany(f"{self._full}; try again later", RETRY_AFTER_S) from error
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
            else:
                self._give_up(key_id, called)
            raise

    def _give_up(self, key_id: str, called: asyncio.Future[None]) -> None:
        """Leave the line, unless the one who calls has just found that nobody is there any more."""
        line = self._lines.get(key_id, deque())
        if called in line:
            line.remove(called)
            if not line:
                del self._lines[key_id]

    def _has_room(self, key_id: str) -> bool:
        free = self._together - self._total
        return free > 0 and self._inside[key_id] < (self._each or free)

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
