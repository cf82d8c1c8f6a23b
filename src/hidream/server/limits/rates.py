"""Rate limits of a key's reads: requests a minute, and event streams and long polls that are open at a time.

Both limits apply to this process alone. They keep one client from overloading it; they are no quota. Requests fill a
leaky bucket that holds a minute's worth, so that bursts are allowed. Every response to a counted request says how full
the bucket is, in the header fields of draft-ietf-httpapi-ratelimit-headers up to its version 06.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hidream.errors import TooMany

MINUTE_S = 60.0
STREAM_RETRY_S = 5
"""The value of Retry-After for a client with too many open streams."""
Headers = list[tuple[bytes, bytes]]
_STATE = "rate"


class RateLimiter:
    """The buckets of the keys; with `a_minute` of 0, nothing is counted."""

    def __init__(self, a_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._a_minute = a_minute
        self._clock = clock
        self._empty_at: dict[str, float] = {}  # when each key's bucket has drained

    def count(self, key_id: str, state: MutableMapping[str, Any]) -> None:
        """Count a request, and put the headers for its response into its `state`. Raises TooMany."""
        if not self._a_minute:
            return
        now, one_s = self._clock(), MINUTE_S / self._a_minute
        filled_s = max(0.0, self._empty_at.get(key_id, now) - now)
        fits = filled_s + one_s <= MINUTE_S + 1e-9
        if fits:
            filled_s += one_s
            self._empty_at[key_id] = now + filled_s
        state[_STATE] = self._headers(filled_s)
        if not fits:
            wait_s = max(1, math.ceil(filled_s + one_s - MINUTE_S))
            raise TooMany(f"this key may read {self._a_minute} times a minute; try again later", wait_s)

    def _headers(self, filled_s: float) -> Headers:
        left = int(self._a_minute * (1 - filled_s / MINUTE_S) + 1e-6)
        return [
            (b"ratelimit-limit", b"%d" % self._a_minute),
            (b"ratelimit-remaining", b"%d" % left),
            (b"ratelimit-reset", b"%d" % math.ceil(filled_s)),
        ]


class StreamLimiter:
    """Counts the open event streams and long polls of each key; a key may have `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @contextmanager
    def slot(self, key_id: str) -> Iterator[None]:
        """Count one as open during the block. Raises TooMany."""
        if self._open[key_id] >= self._most:
            message = f"{self._most} event streams and long polls of this key are open, as many as it may have"
            raise TooMany(f"{message}; close some, or try again later", STREAM_RETRY_S)
        self._open[key_id] += 1
        try:
            yield
        finally:
            self._open[key_id] -= 1
            if not self._open[key_id]:
                del self._open[key_id]


class RateLimitHeaders:
    """ASGI middleware that adds the headers to a response which `RateLimiter.count` put into the request's state."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def send_with_rates(message: Message) -> None:
            if message["type"] == "http.response.start" and (rates := scope.get("state", {}).get(_STATE)):
                message["headers"] = [*message.get("headers", ()), *rates]
            await send(message)

        await self._app(scope, receive, send_with_rates if scope["type"] == "http" else send)
