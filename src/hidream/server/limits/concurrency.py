"""Concurrency limits for scarce resources of this process, fair between keys.

A limiter has a number of slots in all and a number per key. Other requests wait in the queue of their key, and the keys
take turns. So many requests of one key do not block those of others. If a client has disconnected when its turn comes,
its request is dropped: fifteen hundred listings that nobody waits for cost no query.

One limiter guards the database against reading requests. Others guard large bodies and fetched files, which are written
to disk; a body that waits for its slot is not read meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from hidream.errors import TooMany

PER_KEY, AT_ONCE = 3, 16
"""One key cannot take all connections to SQLite (`store/sqlite.CONNECTIONS`); more requests would only wait there."""
LARGE_AT_ONCE = 64
"""Bodies or fetched files of 16 to 20 MiB each; more would only slow each other down."""
QUEUE_TIMEOUT_S = 30.0
"""The longest wait of a large body for its slot: less than the minute after which most clients give up."""
RETRY_AFTER_S = 5


class ConcurrencyLimiter:
    """One process's limiter, with `at_once` slots in all and `per_key` slots for each key.

    Without `per_key`, a key may take another slot while it has fewer than are free. So a key alone can take half of
    them, and some are left for the next key. A request that waits longer than `wait_s` raises TooMany with `error`.
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
        """Run the block in a slot of this key. Raises TooMany if the wait takes too long.

        With `request`, raises ClientDisconnect if its client disconnected while it waited. The request's body, if it
        has one, must have been read before.
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
        """Leave the queue, unless `_start_next` has already removed the request because it was cancelled."""
        queue = self._queues.get(key_id, deque())
        if called in queue:
            queue.remove(called)
            if not queue:
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
        """Start the first request of the first key with a free slot, and move that key behind the others."""
        key_id = next((each for each in self._queues if self._has_slot(each)), None)
        if key_id is None:
            return False
        queue = self._queues.pop(key_id)
        called = queue.popleft()
        if queue:
            self._queues[key_id] = queue
        if not called.cancelled():
            self._start(key_id)
            called.set_result(None)
        return True
