"""The listening socket, and the limit of file descriptors.

Without a free descriptor, a connection can be neither accepted nor refused. It stays in the socket's backlog, and the
event loop tries to accept it again and again. So one descriptor is kept in reserve: with it, the connection is
accepted, answered with 503, and closed.
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
from hidream.logs import RateLimitedLog
from hidream.settings.tables import Server

ACCEPTS_PER_ROUND = 2
"""Connections that are accepted in one iteration of the event loop, so that their limit is checked in between."""
OWN_DESCRIPTORS = 64
"""Descriptors for other things than connections: database, log, event loop, pipes. With SQLite, 35 were counted."""
RESERVED_CONNECTIONS = 16
"""Connections that may be open beyond the limit, until it is known whether they request a health path."""

_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

logger = logging.getLogger(__name__)


class Listener(socket.socket):
    """A listening socket whose `accept` never runs out of descriptors."""

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(fileno=listening.detach())
        self._spare = os.open(os.devnull, os.O_RDONLY)
        self._taken = 0
        self._out_of_descriptors = RateLimitedLog(logger, "descriptors_exhausted")

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Raises BlockingIOError if there is none, or enough were accepted in this iteration."""
        if self._taken >= ACCEPTS_PER_ROUND:
            raise BlockingIOError(errno.EAGAIN, "enough for one round")
        try:
            taken = super().accept()
        except OSError as error:
            if error.errno not in _OUT_OF_RESOURCES:
                raise
            self._out_of_descriptors.warn(error.strerror)
            self._refuse_one()
            raise BlockingIOError(errno.EAGAIN, "out of descriptors") from error
        with contextlib.suppress(RuntimeError):  # a test may call this without a loop
            loop = asyncio.get_running_loop()
            if not self._taken:
                loop.call_soon(self._begin_round)
            self._taken += 1
        return taken

    def close(self) -> None:
        """Close the socket and the spare descriptor."""
        super().close()
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)

    def _begin_round(self) -> None:
        self._taken = 0

    def _refuse_one(self) -> None:
        """Accept a connection with the spare descriptor, answer it with 503, and close it."""
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
        # Otherwise a response's body waits 40 ms until the client acknowledges the head (Nagle's algorithm).
        # Connections inherit the option; asyncio sets it only on sockets that it creates itself.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Listener(listening)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {server.host}, port {server.port} ({error}); accepted: a free port, or 0"
        ) from error


def connection_limit(wanted: int, beside: int) -> int:
    """Return how many connections may be open at a time: `wanted`, or fewer if the system has too few descriptors.

    Each connection may also have a file open. `beside` is the number of outgoing connections, to webhooks. The soft
    limit of descriptors is raised as far as needed and allowed. If that is not enough, a warning is logged.
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
    possible = max(8, (soft - RESERVED_CONNECTIONS - OWN_DESCRIPTORS - beside) // 2)
    advice = f"{soft} descriptors; {needed} are needed: LimitNOFILE of systemd, `ulimit -n`"
    limit = min(possible, wanted)
    logger.warning("connections_limited connections_max=%d instead_of=%d reason=%s", limit, wanted, advice)
    return limit
