"""What a request with a long body needs around its route: an end to what it holds, and to what nobody reads.

What was answered before its body was read ends its connection. The server below would read all the rest, however long
it is, to find the next request behind it. A client that is still sending hears the answer, because a little of the rest
is read and thrown away first: the end of a connection with bytes on their way is a reset, which can overtake the answer
(RFC 9112, 9.6).

What a request holds of its body (files with its long texts, its turn) ends before its answer begins, and so before
anything is waited for that the client can make last; a route that waits itself lets go of it first (`let_go`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SHORT_BYTES = 65_536
"""A body that is no longer than this needs nothing: the server below holds as much of every request."""
LINGER_S, LINGER_BYTES = 1.0, 2 * 2**20
KNOWN_LINGER_S, KNOWN_LINGER_BYTES = 10.0, 64 * 2**20
"""For who has a key, most often with a picture that is too large, and a client that only listens when all is sent."""
KEY_ID = "key_id"
"""Name of what the request's state has once it is known whose it is."""
HELD = "held"
"""Name of the stack in the request's state whose contents end before the request's answer begins."""


class LongBodies:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and watch how far its body is read."""
        if scope["type"] != "http" or not is_long(scope):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        async with AsyncExitStack() as held:
            state[HELD] = held
            unread = _Unread(receive, send, state)
            await self._app(scope, unread.receive, unread.send)


class _Unread:
    """One request's way in and out, which ends the connection if the answer comes before the body's end."""

    def __init__(self, receive: Receive, send: Send, state: Mapping[str, Any]) -> None:
        self._receive, self._send, self._state = receive, send, state
        self._is_read, self._closes = False, False

    async def receive(self) -> Message:
        """Get a piece of the body."""
        message = await self._receive()
        self._is_read = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a piece of the answer."""
        begins = message["type"] == "http.response.start"
        if begins:
            await self._state[HELD].aclose()
        if begins and not self._is_read:
            self._closes = True
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        if not self._closes or message["type"] != "http.response.body" or message.get("more_body", False):
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        await self._linger()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self) -> None:
        """Throw away what comes, not for long; short bodies, and refusals below us, are left to `Patience.linger_s`."""
        known = self._state.get(KEY_ID)
        seconds, most = (KNOWN_LINGER_S, KNOWN_LINGER_BYTES) if known else (LINGER_S, LINGER_BYTES)
        dropped = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._is_read and dropped < most:
                    dropped += len((await self.receive()).get("body", b""))


async def let_go(request: Request) -> None:
    """End what a request holds of its body, once nothing of that is needed any more."""
    if (held := getattr(request.state, HELD, None)) is not None:
        await held.aclose()


def is_long(scope: Scope) -> bool:
    """Whether a request announces a body that is not short, or does not say how long it is."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            return True
        if name == b"content-length" and (not value.isdigit() or int(value[:20]) > SHORT_BYTES):
            return True
    return False
