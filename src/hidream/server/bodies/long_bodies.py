"""What a request with a long body needs around its route: an end to what it holds, and to what nobody reads.

What was answered before its body was read ends its connection. The server below would read all the rest, however long
it is, to find the next request behind it (`connection` throws a little of it away, so that the answer is heard).

What a request holds of its body (files with its long texts, its turn) ends before its answer begins, and so before
anything is waited for that the client can make last; a route that waits itself lets go of it first (`let_go`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SHORT_BYTES = 65_536
"""A body that is no longer than this needs nothing: the server below holds as much of every request."""
KEY_ID = "key_id"
"""Name of what the request's state has once it is known whose it is."""
HELD_FILES = "held"
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
            state[HELD_FILES] = held
            unread = _Unread(receive, send, state)
            await self._app(scope, unread.receive, unread.send)


class _Unread:
    """One request's way in and out, which ends the connection if the answer comes before the body's end."""

    def __init__(self, receive: Receive, send: Send, state: Mapping[str, Any]) -> None:
        self._receive, self._send, self._state = receive, send, state
        self._is_read = False

    async def receive(self) -> Message:
        """Get a piece of the body."""
        message = await self._receive()
        self._is_read = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a piece of the answer."""
        begins = message["type"] == "http.response.start"
        if begins:
            await self._state[HELD_FILES].aclose()
        if begins and not self._is_read:
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await self._send(message)


async def release(request: Request) -> None:
    """End what a request holds of its body, once nothing of that is needed any more."""
    if (held := getattr(request.state, HELD_FILES, None)) is not None:
        await held.aclose()


def is_long(scope: Scope) -> bool:
    """Whether a request announces a body that is not short, or does not say how long it is."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            return True
        if name == b"content-length" and (not value.isdigit() or int(value[:20]) > SHORT_BYTES):
            return True
    return False
