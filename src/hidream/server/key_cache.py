"""The API-key cache: keys are looked up in the database, and cached for a moment.

So a client that sends a hundred requests a second, or a hundred at once, costs one look-up. A revoked, rotated or
changed key takes effect in every process after TTL_S at the latest. Unknown keys are not cached, because there could be
any number of them. A client that sends many of them is slowed down (`limits/failed_auth`).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable

from cachetools import LRUCache

from hidream.server.limits.failed_auth import FailedAuthThrottle
from hidream.store import keys
from hidream.store.database import Database
from hidream.store.keys import Key

TTL_S = 1.0
"""The longest for which a revoked key still works."""
REFRESH_S = 0.4
"""A key that is used less than this before it expires is looked up in the background, so that no request waits."""
KEYS_MAX = 10_000
"""The number of cached keys, a few MB. Beyond that, the one that was not used for longest is dropped."""


class ApiKeyCache:
    """The keys that this process has recently looked up, by the hash of their secret."""

    def __init__(self, database: Database, pepper: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._pepper = pepper
        self._clock = clock
        self._cached: LRUCache[bytes, tuple[float, Key]] = LRUCache(KEYS_MAX)
        self._failed_auth = FailedAuthThrottle(clock)
        self._lookups: dict[bytes, asyncio.Task[Key | None]] = {}

    async def find(self, secret: str, address: str = "") -> Key | None:
        """Return the key of a secret that a client at `address` sent; None if it is unknown or revoked.

        Raises TooMany if it is unknown and the address has sent too many unknown keys.
        """
        name = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
        cached, now = self._cached.get(name), self._clock()
        if cached is not None and now < cached[0]:
            if now > cached[0] - REFRESH_S:
                self._start_lookup(name, secret)
            return cached[1]
        key = await asyncio.shield(self._start_lookup(name, secret))
        if key is None:
            await self._failed_auth.failed(address)
        return key

    def _start_lookup(self, name: bytes, secret: str) -> asyncio.Task[Key | None]:
        if (lookup := self._lookups.get(name)) is None:
            lookup = self._lookups[name] = asyncio.create_task(self._look_up(name, secret))
            lookup.add_done_callback(lambda task: self._finish_lookup(name, task))
        return lookup

    def _finish_lookup(self, name: bytes, lookup: asyncio.Task[Key | None]) -> None:
        del self._lookups[name]
        if not lookup.cancelled():
            lookup.exception()  # marks it as retrieved: in a background look-up nobody waits for it

    async def _look_up(self, name: bytes, secret: str) -> Key | None:
        began = self._clock()
        key = await keys.find(self._database, secret, pepper=self._pepper)
        if key is None:
            self._cached.pop(name, None)
            return None
        self._cached[name] = began + TTL_S, key  # counted from before the look-up
        return key
