"""One attempt to deliver a webhook, and how long to wait before the next.

`deliver` signs the bytes, posts them by the one way out that there is (`network`), and says what became of it. It
raises nothing: whatever happens out there is an `Attempt`. A receiver has the webhook when it has answered 2xx.
Redirects are not followed, answers are not kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

import httpcore

from hidream.errors import InvalidInput
from hidream.outbound import network, targets
from hidream.outbound.network import CONNECT_S, CheckedNetwork, TlsContext
from hidream.outbound.targets import Allowlist, Resolver
from hidream.webhooks import signature

TOTAL_S = 10.0
"""For one attempt; a receiver is to take the webhook and work afterwards."""

DELAYS_S = (0, 5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800, 28_800)
"""Before each attempt: one that is restarted is asked within minutes, one that is repaired by hand within the day. In
all 23.7 hours; WaveSpeed's three attempts would lose what ends during an outage of a few minutes."""
ATTEMPTS_MAX = len(DELAYS_S)
JITTER = 0.2
"""The largest share by which a delay is longer, so that those who failed together do not come back together."""

RETRY_AFTER_MAX_S = 3600
"""The longest that a receiver may put off its next attempt by `Retry-After`."""

_ANSWER_ENOUGH_BYTES = 4096  # read so that an ordinary receiver is not cut off in the middle of its answer
_BUSY = (429, 503)  # those whose `Retry-After` speaks of the same request (RFC 6585, RFC 9110 section 10.2.3)


@dataclass(frozen=True, slots=True)
class WebhookMessage:
    """What is to be delivered: the same id and the same bytes at every attempt."""

    id: str
    url: str
    secret: str = field(repr=False)
    body: bytes = field(repr=False)
    next_secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of an attempt: the receiver's HTTP status if it answered; `error` is empty when it was 2xx."""

    status: int | None
    error: str
    duration_ms: int
    retry_after_s: float = 0.0

    @property
    def delivered(self) -> bool:
        """Whether the receiver has taken it."""
        return not self.error


@dataclass(frozen=True, slots=True)
class WebhookClient:
    """How webhooks are delivered; one serves any number of deliveries at a time."""

    allowed: Allowlist = field(default_factory=Allowlist)
    connect_s: float = CONNECT_S
    total_s: float = TOTAL_S
    resolve: Resolver = targets.resolve
    now_s: Callable[[], float] = time.time
    tls: TlsContext = field(default_factory=TlsContext)


async def deliver(client: WebhookClient, message: WebhookMessage) -> Attempt:
    """Try once, within `courier.total_s`."""
    began = time.monotonic()
    responses: list[httpcore.Response] = []
    try:
        async with asyncio.timeout(client.total_s):
            await _post(client, message, responses)
        error = ""
    except TimeoutError:
        error = f"no answer within {client.total_s:g} s"
    except Exception as reason:  # what a stranger sends must not end the loop that delivers to all others
        error = _error_text(reason, client.connect_s)
    duration_ms = round((time.monotonic() - began) * 1000)
    if not responses:
        return Attempt(None, error, duration_ms)
    # once there is a status it counts, whatever became of the rest of the answer
    status = responses[0].status
    return Attempt(status, _status_error(status), duration_ms, _retry_after_s(responses[0], client.now_s()))


def backoff(attempt: int, seed: str) -> float:
    """Tell how many seconds to wait before an attempt, of which 1 is the first; the same for the same seed.

    The seed is the id of the delivery. Beyond ATTEMPTS_MAX the last delay repeats.
    """
    delay_s = DELAYS_S[min(attempt, ATTEMPTS_MAX) - 1]
    digest = hashlib.sha256(f"{seed}.{attempt}".encode()).digest()
    return delay_s * (1 + JITTER * int.from_bytes(digest[:4]) / 2**32)


def retry_delay_s(made: int, seed: str, last: Attempt) -> float:
    """Tell how many seconds to wait after `made` attempts, of which the last has failed.

    It is the backoff, or longer where the receiver asked for it.
    """
    return max(backoff(made + 1, seed), last.retry_after_s)


async def _post(client: WebhookClient, message: WebhookMessage, responses: list[httpcore.Response]) -> None:
    """Post the body; the answer is in `answered` as soon as its head is there."""
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
    """Read how long a busy receiver wants to be left alone: seconds, or a date (RFC 9110, section 10.2.3)."""
    text = network.header(response, "retry-after").strip()
    if response.status not in _BUSY or not text:
        return 0.0
    if re.fullmatch(r"[0-9]{1,9}", text):
        return min(float(text), RETRY_AFTER_MAX_S)
    try:
        wanted_s = parsedate_to_datetime(text).timestamp() - now_s
    except (ValueError, OverflowError):
        return 0.0
    return min(max(wanted_s, 0.0), RETRY_AFTER_MAX_S)


def _error_text(error: Exception, connect_s: float) -> str:
    """Say what went wrong, in words that name no address and repeat nothing of what a receiver sent."""
    if isinstance(error, InvalidInput):
        return str(error)
    if words := network.connection_error(error, connect_s):
        return words
    if isinstance(error, httpcore.NetworkError):
        return "the connection broke before the answer"
    if isinstance(error, httpcore.RemoteProtocolError):
        return "no answer, or none that is HTTP"
    return f"the attempt failed: {type(error).__name__}"
