"""One attempt to deliver a webhook, and the delay before the next.

`deliver` signs the body, posts it through `outbound/network`, and returns an `Attempt`. It raises nothing: every error
of the receiver or the network becomes an `Attempt`. A webhook is delivered when the receiver has answered 2xx.
Redirects are not followed, and responses are not kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpcore

from hidream.errors import InvalidInput
from hidream.outbound import network, targets
from hidream.outbound.network import CONNECT_S, CheckedNetwork, TlsContext
from hidream.outbound.targets import Allowlist, Resolver
from hidream.retry_after import retry_after_s
from hidream.webhooks import signature

TOTAL_S = 10.0
"""The time for one attempt; a receiver should accept the webhook first and process it afterwards."""

DELAYS_S = (0, 5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800, 28_800)
"""The delay before each attempt: enough for a receiver that restarts within minutes, or is repaired within a day. In
all 23.7 hours; WaveSpeed's three attempts would lose webhooks during an outage of a few minutes."""
ATTEMPTS_MAX = len(DELAYS_S)
JITTER = 0.2
"""The largest random extension of a delay, so that deliveries that failed together are not retried together."""

RETRY_AFTER_MAX_S = 3600
"""The longest that a receiver may put off its next attempt by `Retry-After`."""

_ANSWER_ENOUGH_BYTES = 4096  # read so that an ordinary receiver can finish its response
_BUSY = (429, 503)  # statuses whose `Retry-After` concerns the same request (RFC 6585, RFC 9110 section 10.2.3)


@dataclass(frozen=True, slots=True)
class WebhookMessage:
    """The message to deliver, with the same id and the same bytes at every attempt."""

    id: str
    url: str
    secret: str = field(repr=False)
    body: bytes = field(repr=False)
    next_secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of an attempt: the receiver's HTTP status, None without a response; `error` is empty after a 2xx."""

    status: int | None
    error: str
    duration_ms: int
    retry_after_s: float = 0.0

    @property
    def delivered(self) -> bool:
        """Whether the receiver has accepted the webhook."""
        return not self.error


@dataclass(frozen=True, slots=True)
class WebhookClient:
    """The configuration for deliveries; any number of them can share it."""

    allowed: Allowlist = field(default_factory=Allowlist)
    connect_s: float = CONNECT_S
    total_s: float = TOTAL_S
    resolve: Resolver = targets.resolve
    now_s: Callable[[], float] = time.time
    tls: TlsContext = field(default_factory=TlsContext)


async def deliver(client: WebhookClient, message: WebhookMessage) -> Attempt:
    """Make one attempt, within `client.total_s`."""
    began = time.monotonic()
    responses: list[httpcore.Response] = []
    try:
        async with asyncio.timeout(client.total_s):
            await _post(client, message, responses)
        error = ""
    except TimeoutError:
        error = f"no answer within {client.total_s:g} s"
    except Exception as reason:  # an edge: a receiver's response must not end the loop that delivers to all others
        error = _error_text(reason, client.connect_s)
    duration_ms = round((time.monotonic() - began) * 1000)
    if not responses:
        return Attempt(None, error, duration_ms)
    # the status counts, even if the rest of the response failed
    status = responses[0].status
    return Attempt(status, _status_error(status), duration_ms, _retry_after_s(responses[0], client.now_s()))


def backoff(attempt: int, seed: str) -> float:
    """Return the delay in seconds before an attempt; the first is 1. It is deterministic for a seed.

    The seed is the id of the delivery. Beyond ATTEMPTS_MAX, the last delay repeats.
    """
    delay_s = DELAYS_S[min(attempt, ATTEMPTS_MAX) - 1]
    digest = hashlib.sha256(f"{seed}.{attempt}".encode()).digest()
    return delay_s * (1 + JITTER * int.from_bytes(digest[:4]) / 2**32)


def retry_delay_s(made: int, seed: str, last: Attempt) -> float:
    """Return the delay in seconds after `made` attempts, of which the last has failed.

    It is the backoff, or longer if the receiver requested that.
    """
    return max(backoff(made + 1, seed), last.retry_after_s)


async def _post(client: WebhookClient, message: WebhookMessage, responses: list[httpcore.Response]) -> None:
    """Post the body; append the response to `responses` as soon as its head is received."""
    target = targets.check(message.url, client.allowed)
    checked = CheckedNetwork(target, client.allowed, client.resolve)
    headers = {"Content-Type": "application/json"}
    now_s = int(client.now_s())
    headers |= signature.headers(message.secret, message.id, now_s, message.body, message.next_secret)
    request = network.send_request(checked, client.tls, client.connect_s, "POST", headers.items(), message.body)
    async with request as response:
        responses.append(response)
        await network.read_body(response, _ANSWER_ENOUGH_BYTES)


def _status_error(status: int) -> str:
    if 200 <= status < 300:
        return ""
    if 300 <= status < 400:
        return f"the receiver answered {status}, and redirects are not followed; accepted: 2xx from the URL itself"
    return f"the receiver answered {status}; accepted: 2xx"


def _retry_after_s(response: httpcore.Response, now_s: float) -> float:
    """Read the Retry-After of a busy receiver in seconds."""
    if response.status not in _BUSY:
        return 0.0
    return min(retry_after_s(network.header(response, "retry-after"), now_s), RETRY_AFTER_MAX_S)


def _error_text(error: Exception, connect_s: float) -> str:
    """Describe an error without any address, and without anything that the receiver sent."""
    if isinstance(error, InvalidInput):
        return str(error)
    if text := network.connection_error(error, connect_s):
        return text
    if isinstance(error, httpcore.NetworkError):
        return "the connection broke before the answer"
    if isinstance(error, httpcore.RemoteProtocolError):
        return "no answer, or none that is HTTP"
    return f"the attempt failed: {type(error).__name__}"
