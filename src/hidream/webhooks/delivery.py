"""One attempt to deliver a webhook, and how long to wait before the next.

`deliver` signs the bytes, resolves the host, connects to one of the addresses that were checked, posts, and says what
became of it. It raises nothing: whatever happens out there is an `Attempt`. A receiver has the webhook when it has
answered 2xx. Redirects are not followed, answers are not kept, no connection is used twice, and neither proxies nor
anything else is read from the environment but where OpenSSL looks for authorities (`SSL_CERT_FILE`).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import cast

import httpcore

from hidream import __version__
from hidream.errors import InvalidInput
from hidream.webhooks import signature, targets
from hidream.webhooks.targets import Address, Allowed, Lookup, Target

CONNECT_S = 5.0
"""For each of name, connection and TLS: who is reachable needs a second, and who is not will be asked again."""
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

_ANSWER_MAX_BYTES = 4096  # read so that an ordinary receiver is not cut off in the middle of its answer
_ADDRESSES_PER_FAMILY = 2  # each gets its share of CONNECT_S: with more, a distant one would have too little
_BUSY = (429, 503)  # those whose `Retry-After` speaks of the same request (RFC 6585, RFC 9110 section 10.2.3)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is to be delivered: the same id and the same bytes at every attempt."""

    id: str
    url: str
    secret: str = field(repr=False)
    body: bytes = field(repr=False)


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
class Courier:
    """How webhooks are delivered; one serves any number of deliveries at a time."""

    allowed: Allowed = field(default_factory=Allowed)
    connect_s: float = CONNECT_S
    total_s: float = TOTAL_S
    lookup: Lookup = targets.lookup
    now_s: Callable[[], float] = time.time
    tls: ssl.SSLContext = field(default_factory=httpcore.default_ssl_context)


async def deliver(courier: Courier, delivery: Delivery) -> Attempt:
    """Try once, within `courier.total_s`."""
    began = time.monotonic()
    answered: list[httpcore.Response] = []
    try:
        async with asyncio.timeout(courier.total_s):
            await _post(courier, delivery, answered)
        error = ""
    except TimeoutError:
        error = f"no answer within {courier.total_s:g} s"
    except Exception as reason:  # what a stranger sends must not end the loop that delivers to all others
        error = _said(reason, courier.connect_s)
    duration_ms = round((time.monotonic() - began) * 1000)
    if not answered:
        return Attempt(None, error, duration_ms)
    # once there is a status it counts, whatever became of the rest of the answer
    status = answered[0].status
    return Attempt(status, _verdict(status), duration_ms, _retry_after_s(answered[0], courier.now_s()))


def backoff(attempt: int, seed: str) -> float:
    """Tell how many seconds to wait before an attempt, of which 1 is the first; the same for the same seed.

    The seed is the id of the delivery. Beyond ATTEMPTS_MAX the last delay repeats.
    """
    delay_s = DELAYS_S[min(attempt, ATTEMPTS_MAX) - 1]
    digest = hashlib.sha256(f"{seed}.{attempt}".encode()).digest()
    return delay_s * (1 + JITTER * int.from_bytes(digest[:4]) / 2**32)


def wait_s(made: int, seed: str, last: Attempt) -> float:
    """Tell how many seconds to wait after `made` attempts, of which the last has failed.

    It is the backoff, or longer where the receiver asked for it.
    """
    return max(backoff(made + 1, seed), last.retry_after_s)


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """The only way out: it opens connections to the addresses of a target that were checked, and to no others.

    The HTTP client above goes on speaking of the host by its name, so TLS verifies the name.
    """

    def __init__(self, courier: Courier, target: Target) -> None:
        self._courier = courier
        self._target = target
        self._sockets = httpcore.AnyIOBackend()
        self._opened: httpcore.AsyncNetworkStream | None = None

    async def aclose(self) -> None:
        """Close what was opened: the client above forgets a connection whose TLS greeting is cut off."""
        if self._opened is not None:
            await self._opened.aclose()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (httpcore's signature)
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        assert (host, port) == (self._target.host, self._target.port), "a connection is made for one target"
        try:
            async with asyncio.timeout(timeout):
                found = await targets.addresses(self._target, self._courier.allowed, self._courier.lookup)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error
        except OSError as error:
            raise httpcore.ConnectError from error
        self._opened = await self._first(_both_families(found), port, timeout)
        return self._opened

    async def _first(self, found: list[Address], port: int, within_s: float | None) -> httpcore.AsyncNetworkStream:
        """Connect to the first that can be reached; each has its share of the time."""
        share_s = within_s / len(found) if within_s else None
        for address in found[:-1]:
            try:
                return await self._sockets.connect_tcp(str(address), port, share_s)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._sockets.connect_tcp(str(found[-1]), port, share_s)


async def _post(courier: Courier, delivery: Delivery, answered: list[httpcore.Response]) -> None:
    """Post the body; the answer is in `answered` as soon as its head is there."""
    target = targets.check(delivery.url, courier.allowed)
    url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
    async with (
        aclosing(_CheckedNetwork(courier, target)) as network,
        httpcore.AsyncHTTPConnection(url.origin, courier.tls, network_backend=network) as connection,
        connection.stream(
            "POST",
            url,
            headers=_headers(delivery, target, int(courier.now_s())),
            content=delivery.body,
            extensions={"timeout": {"connect": courier.connect_s}},
        ) as answer,
    ):
        answered.append(answer)
        await _read_a_little(answer)


def _headers(delivery: Delivery, target: Target, timestamp_s: int) -> list[tuple[str | bytes, str | bytes]]:
    return [
        ("Host", target.netloc),
        ("Content-Type", "application/json"),
        ("User-Agent", f"hidream/{__version__}"),
        ("Connection", "close"),
        *signature.headers(delivery.secret, delivery.id, timestamp_s, delivery.body).items(),
    ]


async def _read_a_little(answer: httpcore.Response) -> None:
    read = 0
    async with aclosing(cast("AsyncGenerator[bytes]", answer.aiter_stream())) as chunks:
        async for chunk in chunks:
            read += len(chunk)
            if read >= _ANSWER_MAX_BYTES:
                return


def _both_families(found: list[Address]) -> list[Address]:
    """Keep a few of each family, in their order: a machine may have a route to one only."""
    kept = {version: [a for a in found if a.version == version][:_ADDRESSES_PER_FAMILY] for version in (4, 6)}
    return [address for address in found if address in kept[address.version]]


def _verdict(status: int) -> str:
    if 200 <= status < 300:
        return ""
    if 300 <= status < 400:
        return f"the receiver answered {status}, and redirects are not followed; accepted: 2xx from the URL itself"
    return f"the receiver answered {status}; accepted: 2xx"


def _retry_after_s(answer: httpcore.Response, now_s: float) -> float:
    """Read how long a busy receiver wants to be left alone: seconds, or a date (RFC 9110, section 10.2.3)."""
    given = [value for name, value in answer.headers if name.lower() == b"retry-after"]
    if answer.status not in _BUSY or not given:
        return 0.0
    text = given[0].decode("latin-1").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return min(float(text), RETRY_AFTER_MAX_S)
    try:
        wanted_s = parsedate_to_datetime(text).timestamp() - now_s
    except (ValueError, OverflowError):
        return 0.0
    return min(max(wanted_s, 0.0), RETRY_AFTER_MAX_S)


def _said(error: Exception, connect_s: float) -> str:
    """Say what went wrong, in words that name no address and repeat nothing of what a receiver sent."""
    root = _root(error)
    match error, root:
        case InvalidInput(), _:
            return str(error)
        case httpcore.ConnectTimeout(), _:
            return f"no connection within {connect_s:g} s"
        case _, socket.gaierror():
            return f"the host name could not be resolved: {root.strerror}"
        case _, ssl.SSLCertVerificationError():
            return f"the certificate was not accepted: {root.verify_message}"
        case _, ssl.SSLError():
            return f"TLS failed: {root.reason}"
        case httpcore.ConnectError(), OSError(errno=int(number)):
            return f"no connection: {os.strerror(number)}"
        case httpcore.NetworkError(), _:
            return "the connection broke before the answer"
        case httpcore.RemoteProtocolError(), _:
            return "no answer, or none that is HTTP"
    return f"the attempt failed: {type(root).__name__}"


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
