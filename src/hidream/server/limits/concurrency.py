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

PER_KEY, AT_ONCE = 3, 16
"""One key does not take all connections to SQLite (`store/sqlite.CONNECTIONS`); more at once would only wait there."""
LARGE_AT_ONCE = 64
"""Bodies, or fetched files, of 16 to 20 MiB each; more would only slow each other down."""
QUEUE_TIMEOUT_S = 30.0
"""The longest wait for their turn: below the minute after which most clients give up."""
RETRY_AFTER_S = 5


class ConcurrencyLimiter:
    """One process's limiter, for `at_once` of all keys' and `per_key` of a key's.

    Without `per_key`, a key may have one more while it has fewer than are free: alone half of them, and some are left
    for the next. Whoever waits longer than `wait_s` gets a TooMany that says `error`.
    """

    def __init__(
        self, per_key: int | None = PER_KEY, at_once: int = AT_ONCE, wait_s: float | None = None, error: str = ""
    ) -> None:
        self._per_key, self._at_once, self._wait_s, self._error = per_key, at_once, wait_s, error
        self._running: Counter[str] = Counter()
        self._total = 0
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}  # of each key; the first key is next

    @asynccontextmanager
    async def slot(self, key_id: str, request: Request | None = None) -> AsyncIterator[None]:
        """Run the block when it is this key's turn. Raises TooMany if that takes too long.

        With `request`, whose body was read if it has one, raises ClientDisconnect if its client left before.
        """
        if key_id not in self._queues and self._has_slot(key_id):
            self._start(key_id)
        else:
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._wait_in_queue(key_id, request)
            except TimeoutError as error:
                raise TooMany(f"{self._error}; try again later", RETRY_AFTER_S) from error
        try:
            yield
        finally:
            self._finish(key_id)

    async def _wait_in_queue(self, key_id: str, request: Request | None) -> None:
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(key_id, deque()).append(called)
        try:
            await called
            if request is not None and await request.is_disconnected():
                raise ClientDisconnect
        except BaseException:
            if called.done() and not called.cancelled():
                self._finish(key_id)
            else:
                self._dequeue(key_id, called)
            raise

    def _dequeue(self, key_id: str, called: asyncio.Future[None]) -> None:
        """Leave the line, unless the one who calls has just found that nobody is there any more."""
        line = self._queues.get(key_id, deque())
        if called in line:
            line.remove(called)
            if not line:
                del self._queues[key_id]

    def _has_slot(self, key_id: str) -> bool:
        free = self._at_once - self._total
        return free > 0 and self._running[key_id] < (self._per_key or free)

    def _start(self, key_id: str) -> None:
        self._running[key_id] += 1
        self._total += 1

    def _finish(self, key_id: str) -> None:
        self._running[key_id] -= 1
        self._total -= 1
        if not self._running[key_id]:
            del self._running[key_id]
        while self._start_next():
            pass

    def _start_next(self) -> bool:
        """Let the first of the first key that has room enter, and put that key behind the others."""
        key_id = next((each for each in self._queues if self._has_slot(each)), None)
        if key_id is None:
            return False
        line = self._queues.pop(key_id)
        called = line.popleft()
        if line:
            self._queues[key_id] = line
        if not called.cancelled():
            self._start(key_id)
            called.set_result(None)
        return True
