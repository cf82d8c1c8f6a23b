"""The socket that the server listens on, and the descriptors that it may use up.

Out of descriptors a connection can be neither taken nor refused: it stays in the socket's line, where the event loop
sees it again at once, for ever. So one descriptor is kept in reserve, by which a connection is taken, told 503, closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
from typing import Any

from hidream.errors import ConfigurationError
from hidream.logs import Seldom
from hidream.settings.tables import Server

ACCEPTS_PER_ROUND = 2
"""Connections that are taken in one round of the event loop, so that their limit is looked at in between."""
OWN_DESCRIPTORS = 64
"""What a process has open beside connections: database, log, event loop, pipes; 35 were counted on SQLite."""
RESERVED_CONNECTIONS = 16
"""Connections beyond the limit that may be open at a time until they have said whether they ask for health."""

_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

logger = logging.getLogger(__name__)


class Listener(socket.socket):
    """A listening socket whose `accept` never runs out of descriptors."""

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(fileno=listening.detach())
        self._spare = os.open(os.devnull, os.O_RDONLY)
        self._taken = 0
        self._out_of_descriptors = Seldom(logger, "descriptors_exhausted")

    def accept(self) -> tuple[socket.socket, Any]:
        """Take a connection. Raises BlockingIOError when there is none, or none any more in this round of the loop."""
        if self._taken >= ACCEPTS_PER_ROUND:
            raise BlockingIOError(errno.EAGAIN, "enough for one round")
        try:
            taken = super().accept()
        except OSError as error:
            if error.errno not in _OUT_OF_RESOURCES:
                raise
            self._out_of_descriptors.say(error.strerror)
            self._refuse_one()
            raise BlockingIOError(errno.EAGAIN, "out of descriptors") from error
        with contextlib.suppress(RuntimeError):  # a test may call this without a loop
            loop = asyncio.get_running_loop()
            if not self._taken:
                loop.call_soon(self._begin_round)
            self._taken += 1
        return taken

    def close(self) -> None:
        """Close the socket, and what was kept in reserve."""
        super().close()
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)

    def _begin_round(self) -> None:
        self._taken = 0

    def _refuse_one(self) -> None:
        """Take a connection with the spare descriptor, and close it."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        with contextlib.suppress(OSError):
            connection, _ = super().accept()
            with connection:
                connection.setblocking(False)
                connection.send(_REFUSAL)
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)


def listen(server: Server) -> Listener:
    """Open the socket that the server listens on. Raises ConfigurationError."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    try:
        listening = socket.create_server((server.host, server.port), family=family, backlog=2048)
        # Else an answer's body waits 40 ms for the client to acknowledge its head (Nagle's algorithm). Connections
        # inherit it; asyncio sets it only where it makes the socket itself.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Listener(listening)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {server.host}, port {server.port} ({error}); accepted: a free port, or 0"
        ) from error


def connection_limit(wanted: int, beside: int) -> int:
    """Say how many connections may be open at a time: as many as are wanted, if the system lets us.

    Each may have a file open too. `beside` is how many connections of our own, to webhooks, may be open meanwhile. The
    soft limit of descriptors is raised as far as needed and allowed; what is still missing is logged.
    """
    needed = 2 * wanted + RESERVED_CONNECTIONS + OWN_DESCRIPTORS + beside
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < needed:
        more = needed if hard == unlimited else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS has another limit below its hard one
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == unlimited or soft >= needed:
        return wanted
    room = max(8, (soft - RESERVED_CONNECTIONS - OWN_DESCRIPTORS - beside) // 2)
    advice = f"{soft} descriptors; {needed} are needed: LimitNOFILE of systemd, `ulimit -n`"
    logger.warning("connections_limited connections_max=%d instead_of=%d because=%s", min(room, wanted), wanted, advice)
    return min(room, wanted)
