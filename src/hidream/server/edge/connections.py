"""All client connections of a process: how many may be open, and their time-outs.

This file does what uvicorn leaves to a proxy. It closes the connection of a client that sends nothing, or that sends or
reads a byte a second. When the limit is reached, a new connection replaces one whose client reads a response too
slowly, or else the one that has been idle for the longest. If every connection has a request in progress, only the
health paths are served. The deadlines of all connections are checked together, once a second, so that a request costs
no timer.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import select
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from hidream.logs import RateLimitedLog
from hidream.server.edge.connection import Connection
from hidream.server.edge.fair_queue import FairQueue
from hidream.server.edge.listener import RESERVED_CONNECTIONS

CANDIDATES = 32
"""How many idle connections are examined to find one to evict."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the server waits for a client, in seconds, and which rates it requires, in bytes a second."""

    tick_s: float = 1.0
    """The interval of the checks; each time-out may be late by as much."""
    head_s: float = 10.0
    """From the start of a connection, or the first byte of its next request, to the end of that request's head."""
    keep_alive_s: float = 65.0
    """How long a connection may be idle between requests. Proxies keep theirs for a minute, usually; this is longer, so
    that they do not send a request into a connection that is being closed."""
    body_silent_s: float = 15.0
    """The longest pause within a request's body."""
    body_grace_s: float = 15.0
    """How many seconds a body may be behind `body_rate`, counted from its start."""
    body_rate: float = 4096.0
    """32 kbit/s."""
    reading_grace_s: float = 30.0
    """How many seconds a client that reads a response may be behind `reading_rate`."""
    reading_ahead_s: float = 45.0
    """How many seconds it may be ahead of that rate. A client's kernel acknowledges 128 KB at a time, which is once a
    minute at 2 KB/s; in between, it looks like a client that reads nothing."""
    reading_rate: float = 1024.0
    crowded_grace_s: float = 5.0
    """The same when the connection limit is reached: clients that are further behind are evicted first. It also limits
    how far a client may be ahead."""
    crowded_rate: float = 16_384.0
    linger_s: float = 10.0
    """How long the rest of a body is discarded after an early response. Otherwise a client that is still sending may
    not receive the response: closing a connection with unread bytes resets it, and the reset can overtake the response
    (RFC 9112, 9.6)."""
    linger_silent_s: float = 3.0
    """The longest pause in a body that is discarded."""
    linger_bytes: int = 2 * 2**20
    """How many bytes are discarded at most."""
    linger_known_bytes: int = 64 * 2**20
    """The same for a request with a valid key: usually its image is too large, and its client reads the response only
    after it has sent everything."""
    reserved_s: float = 5.0
    """The total time of a connection beyond the limit."""


class Connections:
    """All connections of a process."""

    def __init__(self, limit: int, timeouts: Timeouts = Timeouts()) -> None:
        self.limit = limit
        self.timeouts = timeouts
        self.fair_queue = FairQueue()
        self.open: set[Connection] = set()
        self.idle: OrderedDict[Connection, None] = OrderedDict()
        """Connections without a request in progress; the first has been idle for the longest."""
        self.reserved: OrderedDict[Connection, None] = OrderedDict()
        """Connections beyond the limit, oldest first."""
        self._late: list[Connection] = []
        """Connections whose clients were behind `crowded_rate` at the last check, furthest last."""
        self._full = RateLimitedLog(logger, "connections_full")
        self._malformed = RateLimitedLog(logger, "requests_refused")
        self._abandoned = RateLimitedLog(logger, "requests_abandoned")
        self._ticking: asyncio.TimerHandle | None = None

    def connection(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Connection:
        """Make the protocol of a connection; uvicorn calls this."""
        return Connection(self, config, server_state, app_state)

    def add(self, connection: Connection) -> bool:
        """Add a new connection. Return False if it is beyond the limit."""
        if self._ticking is None:
            self._ticking = connection.loop.call_later(self.timeouts.tick_s, self._tick, connection.loop)
        within = len(self.open) - len(self.reserved) < self.limit or self._evict()
        self.open.add(connection)
        if within:
            self.idle[connection] = None
            return True
        if len(self.reserved) >= RESERVED_CONNECTIONS:
            next(iter(self.reserved)).evict()
        self.reserved[connection] = None
        return False

    def discard(self, connection: Connection) -> None:
        """Remove a connection that is closed, or will be in this iteration of the event loop."""
        self.open.discard(connection)
        self.idle.pop(connection, None)
        self.reserved.pop(connection, None)

    def busy(self, connection: Connection) -> None:
        """Mark a connection as busy with a request, so that it is not evicted as idle."""
        self.idle.pop(connection, None)

    def free(self, connection: Connection) -> None:
        """Mark a connection as idle, so that it can be evicted."""
        if connection in self.open and connection not in self.reserved:
            self.idle[connection] = None
            self.idle.move_to_end(connection)

    def malformed(self, reason: str) -> None:
        """Log that malformed requests were refused."""
        self._malformed.warn(reason)

    def abandoned(self) -> None:
        """Log that clients disconnected before their requests were read."""
        self._abandoned.warn("the client closed the connection")

    def _evict(self) -> bool:
        """Close a connection whose client reads too slowly, busy or not, or else the one idle for the longest.

        Connections with unread bytes of a new request are skipped. Returns False if none can be closed.
        """
        self._full.warn(f"{self.limit} are open")
        while self._late:
            late = self._late.pop()
            if late in self.open and late not in self.reserved and late.unsent_bytes:
                late.evict()
                return True
        for connection in itertools.islice(self.idle, CANDIDATES):
            if connection.unsent_bytes or not _has_sent(connection):
                connection.evict()
                return True
        return False

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self.open):
            connection.check(now)
        late = (each for each in self.open if each.late_s > self.timeouts.crowded_grace_s)
        self._late = sorted(late, key=lambda each: each.late_s)
        self._ticking = loop.call_later(self.timeouts.tick_s, self._tick, loop) if self.open else None


def _has_sent(connection: Connection) -> bool:
    """Whether the socket has unread bytes."""
    poll = select.poll()
    poll.register(connection.transport.get_extra_info("socket"), select.POLLIN)
    return bool(poll.poll(0))
