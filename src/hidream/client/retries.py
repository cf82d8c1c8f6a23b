"""What is sent again, when, and how often: `call` sends a request until it has an answer, or nobody can hope for one.

No retry generates an image twice. A request is repeated after any failure only if that cannot matter (`Repeat`). A
submission has an Idempotency-Key. If its fate is unknown, because the connection broke or a proxy answered in the
server's place, `call` first asks the server whether it knows such keys. A server that does not, such as the hosted
WaveSpeed API, gets a submission again only if it surely did not receive it, or refused it with a 429.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, TypeVar

import httpx

from hidream.client.effects import Repeat, Request, Response, Send, Sleep, Steps
from hidream.client.responses import document_of, error_of
from hidream.errors import ConnectionFailed, HiDreamError, InvalidInput, NotFound, ServerError, TimedOut
from hidream.retry_after import retry_after_s

if TYPE_CHECKING:
    from hidream.client.connection import Connection, Deadline

NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
"""Failures before the first byte of a request was sent."""
HOPELESS = (httpx.UnsupportedProtocol, httpx.TooManyRedirects)
"""Failures that come again."""
REFUSED = 429
TRANSIENT = (408, REFUSED, 502, 503, 504)
"""Statuses after which the same request may succeed."""

RETRY_AFTER_MAX_S = 3600.0
"""The longest pause that a server gets: the limits of hidream's own last a minute."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a request is sent in all, and how long the pauses are.

    The pause doubles from `first_s` up to `longest_s`. Up to half of it is left out at random, so that clients that
    failed together do not come back together. A `Retry-After` of the server makes the pause longer, never shorter; for
    one beyond `RETRY_AFTER_MAX_S`, nobody waits.
    """

    attempts: int = 6
    first_s: float = 0.5
    longest_s: float = 8.0
    random: Callable[[], float] = field(default=random.random, repr=False)

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.first_s <= self.longest_s:
            accepted = "1 or more attempts, 0 <= first_s <= longest_s"
            raise InvalidInput(f"retry is {self!r}; accepted: {accepted}", field="retry")

    def pause_s(self, failures: int, wanted_s: float = 0.0) -> float:
        """The pause after so many failures, of which the last one has the Retry-After `wanted_s`."""
        backoff_s = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 60)) * (1 - self.random() / 2)
        return max(backoff_s, wanted_s)


def call(connection: Connection, request: Request, deadline: Deadline, read: Callable[[Response], T]) -> Steps[T]:
    """Send a request until `read` accepts the response, and return what it reads.

    `read` raises ServerError for a response that is broken. Raises what the last failure was, and that at once if the
    pause before the next attempt would end after the deadline.
    """
    for attempt in count(1):
        wanted_s = 0.0
        try:
            response = yield Send(request, deadline.at_s)
            if response.status < 300:
                return read(response)
            wanted_s = retry_after_s(response.headers.get("retry-after", ""), connection.now_s())
            failure = error_of(response, wanted_s)
            hopeful, received = response.status in TRANSIENT, response.status != REFUSED
        except httpx.RequestError as error:
            failure = _unanswered(connection, error, deadline)
            hopeful, received = not isinstance(error, HOPELESS), not isinstance(error, NOT_SENT)
        except ServerError as error:
            failure, hopeful, received = error, True, True
        failure.request_id = failure.request_id or str(request.headers.get("X-Request-ID", ""))
        pause_s = connection.retry.pause_s(attempt, wanted_s)
        hopeful = hopeful and wanted_s <= RETRY_AFTER_MAX_S and pause_s <= deadline.left_s
        last = not hopeful or attempt >= connection.retry.attempts
        if last or not (yield from _may_repeat(connection, request, deadline, received=received)):
            raise failure
        yield Sleep(pause_s)
    raise AssertionError("the attempts are counted above")


def _may_repeat(connection: Connection, request: Request, deadline: Deadline, *, received: bool) -> Steps[bool]:
    if request.repeat is Repeat.ALWAYS or not received:
        return True
    return request.repeat is Repeat.KEYED and (yield from _takes_keys(connection, deadline))


def _takes_keys(connection: Connection, deadline: Deadline) -> Steps[bool]:
    """Whether the server knows Idempotency-Keys: its OpenAPI document says so. Unknown counts as no."""
    if not connection.keyed:
        question = Request("GET", f"{connection.base_url}/openapi.json", {})
        try:
            document = yield from call(connection, question, deadline, document_of)
        except NotFound:
            document = b""
        except HiDreamError:  # which says nothing about the next time
            return False
        connection.keyed.append(b'"Idempotency-Key"' in document)
    return connection.keyed[0]


def _unanswered(connection: Connection, error: httpx.RequestError, deadline: Deadline) -> HiDreamError:
    """Make the error of a request without a response; httpx's texts contain no header."""
    why = str(error) or type(error).__name__
    if isinstance(error, httpx.TimeoutException) and deadline.left_s <= 0:
        failure: HiDreamError = TimedOut(f"{connection.base_url} has not answered in time ({why})")
    elif isinstance(error, NOT_SENT):
        failure = ConnectionFailed(f"{connection.base_url} cannot be reached: {why}")
    else:
        failure = ConnectionFailed(f"the connection to {connection.base_url} failed before the response: {why}")
    failure.__cause__ = error
    return failure
