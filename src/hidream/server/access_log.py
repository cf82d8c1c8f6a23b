"""The access log: one line, one count and one id per request. It contains no keys, bodies, or names of outputs.

The request id is the one that a client or proxy sent, if it is a plain word, else a random one. The response contains
it too, so that a user can name the line in the log. A request about a prediction is logged with the prediction's id; a
route that creates one puts the id into `request.state`. OpenAI's routes also put a digest there of the end user that
their client names.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Count = Callable[[str, str, int, float], None]
"""Takes method, route, status and seconds."""

ID_MAX_CHARS = 32
REQUEST_ID = "X-Request-ID"
_RAW_REQUEST_ID = REQUEST_ID.lower().encode()
_SAFE = re.compile(rb"[\w.:+/=-]{1,64}")  # of bytes: ASCII only
logger = logging.getLogger(__name__)


class AccessLog:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, count: Count) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, log how it was answered, and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500
        request_id = scope.setdefault("state", {})["request_id"] = _request_id(scope)

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_RAW_REQUEST_ID, request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            took_s = time.perf_counter() - started
            self._count(scope["method"], route, status, took_s)
            self._log(scope, route, status, took_s)

    def _log(self, scope: Scope, route: str, status: int, took_s: float) -> None:
        state = scope["state"]
        prediction_id = str(state.get("prediction_id") or scope.get("path_params", {}).get("prediction_id", ""))
        values = scope["method"], route, status, took_s * 1000, state["request_id"]
        more = {}
        if prediction_id.isalnum() and prediction_id.isascii() and len(prediction_id) <= ID_MAX_CHARS:
            more["id"] = prediction_id
        if end_user := state.get("end_user"):
            more["end_user"] = end_user
        names = "".join(f" {name}=%s" for name in more)
        logger.info(f"request method=%s route=%s status=%d ms=%.1f request=%s{names}", *values, *more.values())


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == _RAW_REQUEST_ID and _SAFE.fullmatch(value):
            return str(value, "ascii")
    return new_request_id()


def new_request_id() -> str:
    """Make a request's random id: 32 hex digits."""
    return secrets.token_hex(16)
