"""Fair starts of requests: in each iteration of the event loop, at most one request of each client starts.

A thousand requests that arrive at once would occupy the loop for a second before it serves anybody else. Instead they
are queued as received bytes, which costs nothing. If a client disconnects meanwhile, its request is not parsed.

A client is an API key that was recently found valid, or else an address, so that invented keys gain no share.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable

from cachetools import LRUCache

HEAD_SEARCHED_BYTES = 8192
"""How far into a request its key is searched for. A request whose key comes later is in the queue of its address."""
VALID_KEYS_MAX = 10_000
"""The number of cached keys. Beyond that, the one that was not used for longest is dropped."""

Client = str
"""An address, or the id of a key."""
DISCARDING: Client = ""
"""The client that stands for all connections whose bodies are discarded: one piece is read in each iteration."""
Start = Callable[[], bool]
"""Starts a request; returns False if it no longer exists, so that the next one in the queue may start."""

_AUTHORIZATION = re.compile(rb"\nauthorization:[ \t]*([^\r\n]+)", re.IGNORECASE)


class FairQueue:
    """The queues of one process."""

    def __init__(self) -> None:
        self._valid: LRUCache[int, str] = LRUCache(VALID_KEYS_MAX)  # hash of an Authorization header -> key id
        self._started: set[Client] = set()  # in this iteration of the loop
        self._queues: dict[Client, deque[Start]] = {}
        self._called = False

    def client(self, address: str, authorization: int | None) -> Client:
        """Return the client that a request counts for."""
        return address if authorization is None else self._valid.get(authorization, address)

    def add_valid_key(self, authorization: int, key_id: str) -> None:
        """Give a key that was found valid its own queue from now on, however the header spells it."""
        self._valid[authorization] = key_id

    def start_or_enqueue(self, client: Client, begin: Start) -> bool:
        """Start a request at once if it is its client's first in this iteration; else queue it and return False."""
        self._call()
        if client in self._started or client in self._queues:
            self._queues.setdefault(client, deque()).append(begin)
            return False
        self._started.add(client)
        begin()
        return True

    def _call(self) -> None:
        if not self._called:
            self._called = True
            asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        """Start one request of each client that has a queue."""
        self._called = False
        self._started.clear()
        for client in list(self._queues):
            self._call()
            self._started.add(client)
            queue = self._queues[client]
            while queue and not queue.popleft()():
                pass
            if not queue:
                del self._queues[client]


def authorization_of(head: bytes) -> int | None:
    """Return the hash of the Authorization header in a request's first bytes; None if it is not there."""
    found = _AUTHORIZATION.search(head, 0, HEAD_SEARCHED_BYTES)
    return hash(found[1]) if found else None
