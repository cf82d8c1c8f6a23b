"""Connections of clients: how many may be open, and for how long each may keep us waiting.

uvicorn answers requests; here is what it leaves to a proxy. Who connects and says nothing, or sends or reads a byte a
second, is closed. When all places are taken, who is late in reading an answer makes room, or who has been without a
request for the longest; while each place has a request in work, only health is asked for with success. Deadlines
are looked at once a second, over all connections, so that a request costs nothing for them.
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

from hidream.logs import Seldom
from hidream.server.edge.connection import Connection
from hidream.server.edge.fair_queue import FairQueue
from hidream.server.edge.listener import RESERVED_CONNECTIONS

CANDIDATES = 32
"""Of the connections that may have to make room, how many are looked at."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long is waited for a client, in seconds, and how many bytes a second are expected of it."""

    tick_s: float = 1.0
    """How often is looked: every time-out may come so much later."""
    head_s: float = 10.0
    """From a connection's begin, or from its next request's first byte, to the end of that request's head."""
    keep_alive_s: float = 65.0
    """How long a connection may stay without a request: more than proxies keep theirs, usually a minute, lest they send
    a request into one that is just being closed."""
    body_silent_s: float = 15.0
    """The longest pause within a request's body."""
    body_grace_s: float = 15.0
    """By so many seconds a body may be behind `body_rate`, counted from its begin; 4096 are 32 kbit/s."""
    body_rate: float = 4096.0
    reading_grace_s: float = 30.0
    """By so many seconds may who takes an answer be behind `reading_rate`."""
    reading_ahead_s: float = 45.0
    """By so many seconds may he be ahead of it: a client's system makes room 128 KB at a time, which is once a minute
    at 2 KB/s, and who reads nothing looks the same for so long."""
    reading_rate: float = 1024.0
    crowded_grace_s: float = 5.0
    """As above, while all places are taken: who is further behind than this makes room first. None is further ahead."""
    crowded_rate: float = 16_384.0
    linger_s: float = 10.0
    """How long the rest of a body is thrown away that was answered, or refused, before its end. A client that is still
    sending hears the answer so: a connection that ends with bytes on their way ends in a reset, which can overtake the
    answer (RFC 9112, 9.6)."""
    linger_silent_s: float = 3.0
    linger_bytes: int = 2 * 2**20
    """The most that is thrown away."""
    linger_known_bytes: int = 64 * 2**20
    """The same for who has a key: most often an image that is too large, of a client that only listens when all is
    sent."""
    reserved_s: float = 5.0
    """The whole time of a connection beyond the limit."""


class Connections:
    """All connections of a process."""

    def __init__(self, limit: int, timeouts: Timeouts = Timeouts()) -> None:
        self.limit = limit
        self.timeouts = timeouts
        self.fair_queue = FairQueue()
        self.open: set[Connection] = set()
        self.idle: OrderedDict[Connection, None] = OrderedDict()
        """Those without a request in work, whoever has been so for the longest first."""
        self.reserved: OrderedDict[Connection, None] = OrderedDict()
        """Those beyond the limit, oldest first."""
        self._late: list[Connection] = []
        """Those who were behind `crowded_rate` at the last look, furthest last."""
        self._full = Seldom(logger, "connections_full")
        self._malformed = Seldom(logger, "requests_refused")
        self._abandoned = Seldom(logger, "requests_abandoned")
        self._ticking: asyncio.TimerHandle | None = None

    def connection(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Connection:
        """Make the protocol of a connection: what uvicorn is told to call."""
        return Connection(self, config, server_state, app_state)

    def add(self, connection: Connection) -> bool:
        """Take a new connection in; False if it is one beyond the limit."""
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
        """Forget a connection that is closed, or will be in this round of the loop."""
        self.open.discard(connection)
        self.idle.pop(connection, None)
        self.reserved.pop(connection, None)

    def busy(self, connection: Connection) -> None:
        """Have a connection stay that has a request in work."""
        self.idle.pop(connection, None)

    def free(self, connection: Connection) -> None:
        """Let a connection make room for others again."""
        if connection in self.open and connection not in self.reserved:
            self.idle[connection] = None
            self.idle.move_to_end(connection)

    def malformed(self, because: str) -> None:
        """Log that requests were refused before anybody has looked at them."""
        self._malformed.say(because)

    def abandoned(self) -> None:
        """Log that clients have hung up before their requests were read."""
        self._abandoned.say("the client closed the connection")

    def _evict(self) -> bool:
        """Close who is late in reading, with a request in work or not, or who has been without one for the longest.

        One that has just sent a request, which was not read yet, is passed over.
        """
        self._full.say(f"{self.limit} are open")
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
            connection.look(now)
        late = (each for each in self.open if each.late_s > self.timeouts.crowded_grace_s)
        self._late = sorted(late, key=lambda each: each.late_s)
        self._ticking = loop.call_later(self.timeouts.tick_s, self._tick, loop) if self.open else None


def _has_sent(connection: Connection) -> bool:
    """Whether something has come that was not read yet."""
    poll = select.poll()
    poll.register(connection.transport.get_extra_info("socket"), select.POLLIN)
    return bool(poll.poll(0))
