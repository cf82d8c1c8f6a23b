"""Middleware for requests with a long body: it releases what the request holds, and closes connections in time.

If the response starts before the body was read, the connection is closed after it. Otherwise uvicorn would read the
rest of the body, however long, to find the next request. (`edge/connection` discards a limited part of it, so that the
client receives the response.)

What a request holds of its body (the files with its long texts, its slot) is released before the response starts, since
a slow client could make the response last long. A route that waits itself calls `release` before.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SHORT_BYTES = 65_536
"""The longest body that needs none of this: uvicorn buffers as much of every request."""
KEY_ID = "key_id"
"""The name of the key's id in the request's state, once the key is known."""
HELD_FILES = "held"
"""The name of the exit stack in the request's state that is closed before the response starts."""


class LongBodies:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and track whether its body is read completely."""
        if scope["type"] != "http" or not is_long(scope):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        async with AsyncExitStack() as held:
            state[HELD_FILES] = held
            unread = _Unread(receive, send, state)
            await self._app(scope, unread.receive, unread.send)


class _Unread:
    """Wraps one request's `receive` and `send`; closes the connection if the response starts before the body's end."""

    def __init__(self, receive: Receive, send: Send, state: Mapping[str, Any]) -> None:
        self._receive, self._send, self._state = receive, send, state
        self._is_read = False

    async def receive(self) -> Message:
        """Receive a piece of the body."""
        message = await self._receive()
        self._is_read = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a piece of the response."""
        begins = message["type"] == "http.response.start"
        if begins:
            await self._state[HELD_FILES].aclose()
        if begins and not self._is_read:
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await self._send(message)


async def release(request: Request) -> None:
    """Release what a request holds of its body, when nothing of the body is needed any more."""
    if (held := getattr(request.state, HELD_FILES, None)) is not None:
        await held.aclose()


def is_long(scope: Scope) -> bool:
    """Whether a request announces a body that is not short, does not announce its length, or sends a form.

    The files of a form go to disk, however short it is.
    """
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-type" and value[:10].lower() == b"multipart/"):
            return True
        if name == b"content-length" and (not value.isdigit() or int(value[:20]) > SHORT_BYTES):
            return True
    return False
