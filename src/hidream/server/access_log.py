"""One log line, and one count, per request: method, route, status and time; no keys, no bodies, no names of outputs.

A request about a prediction is logged with its id; a route that makes one puts it into `request.state`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Count = Callable[[str, str, int, float], None]
"""Takes method, route, status and seconds."""

ID_MAX_CHARS = 32
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

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            took_s = time.perf_counter() - started
            self._count(scope["method"], route, status, took_s)
            self._log(scope, route, status, took_s)

    def _log(self, scope: Scope, route: str, status: int, took_s: float) -> None:
        made = scope.get("state", {}).get("prediction_id")  # by a submission
        asked, ms = str(made or scope.get("path_params", {}).get("prediction_id", "")), took_s * 1000
        if asked.isalnum() and asked.isascii() and len(asked) <= ID_MAX_CHARS:
            line = "request method=%s route=%s status=%d ms=%.1f id=%s"
            logger.info(line, scope["method"], route, status, ms, asked)
        else:
            logger.info("request method=%s route=%s status=%d ms=%.1f", scope["method"], route, status, ms)
