"""Whose request begins next: in each round of the event loop one of each client, whoever asks most.

A thousand requests that come at once would keep the loop for a second before it looks at anybody else's. Here they
stand in line as the bytes that have come, which costs nothing, and who has left when his turn comes is never read.

A client is an API key that was found valid lately, or else an address: who invents keys gains no turns.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable

HEAD_SEARCHED_BYTES = 8192
"""How far into a request its key is looked for; one that comes later shares the line of its address."""
VALID_KEYS_MAX = 10_000
"""Keys that are remembered at a time; when there are more, all are forgotten, and found valid again."""

Client = str
"""An address, or the id of a key."""
DISCARDING: Client = ""
"""All those whose bodies are thrown away: one is read in a round."""
Start = Callable[[], bool]
"""Begins a request; False if there is none any more, so that the next in line may."""

_AUTHORIZATION = re.compile(rb"\nauthorization:[ \t]*([^\r\n]+)", re.IGNORECASE)


class FairQueue:
    """The turns of one process."""

    def __init__(self) -> None:
        self._valid: dict[int, str] = {}  # hash of an Authorization header -> id of the key that it turned out to be
        self._started: set[Client] = set()  # in this round of the loop
        self._queues: dict[Client, deque[Start]] = {}
        self._called = False

    def client(self, address: str, authorization: int | None) -> Client:
        """Say as whom a request counts that came from an address."""
        return address if authorization is None else self._valid.get(authorization, address)

    def add_valid_key(self, authorization: int, key_id: str) -> None:
        """Let a key have its own turns from now on: it was found valid."""
        if len(self._valid) >= VALID_KEYS_MAX:
            self._valid.clear()
        self._valid[authorization] = key_id

    def start_or_enqueue(self, client: Client, begin: Start) -> bool:
        """Begin at once if it is the client's first in this round; else say False, and begin when it is its turn."""
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
        """Begin one request of each client that stands in line."""
        self._called = False
        self._started.clear()
        for client in list(self._queues):
            self._call()
            self._started.add(client)
            line = self._queues[client]
            while line and not line.popleft()():
                pass
            if not line:
                del self._queues[client]


def authorization_of(head: bytes) -> int | None:
    """Find the hash of the key in what has come of a request."""
    found = _AUTHORIZATION.search(head, 0, HEAD_SEARCHED_BYTES)
    return hash(found[1]) if found else None
