"""Fetching what a client names by a URL, under the rules of `webhooks/targets`: only public addresses, unless allowed.

The host is resolved once for each step, all its addresses are checked, and the connection goes to one of those that
were. Redirects are followed, each checked like the first. Nothing is read from the environment, and no more of the
answer than may be.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urljoin

import httpcore

from hidream import __version__
from hidream.errors import InvalidInput
from hidream.webhooks import targets
from hidream.webhooks.targets import Address, Allowed, Lookup, Target

TOTAL_S = 20.0
"""For all of it, redirects included: 20 MB at 8 Mbit/s."""
CONNECT_S = 5.0
REDIRECTS_MAX = 3
ADDRESSES_MAX = 3
"""How many of a host's addresses are tried, each for its share of CONNECT_S."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be fetched: targets, bytes, and seconds in all."""

    allowed: Allowed
    max_bytes: int
    total_s: float = TOTAL_S
    lookup: Lookup = targets.lookup
    tls: ssl.SSLContext = field(default_factory=httpcore.default_ssl_context)


async def fetch(field: str, url: str, rules: Rules) -> bytes:
    """Fetch a file. Raises InvalidInput, which names the request's field, whatever goes wrong."""
    try:
        async with asyncio.timeout(rules.total_s):
            return await _follow(url, rules)
    except InvalidInput as error:
        raise InvalidInput(f"{field} {error.message.removeprefix('webhook ')}") from error
    except TimeoutError as error:
        raise InvalidInput(f"{field} could not be fetched within {rules.total_s:g} s; {_ACCEPTED}") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
        raise InvalidInput(f"{field} could not be fetched: its server is not reached; {_ACCEPTED}") from error


_ACCEPTED = "accepted: a URL that answers with a file"


async def _follow(url: str, rules: Rules) -> bytes:
    for _ in range(REDIRECTS_MAX + 1):
        found = await _get(url, rules)
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise InvalidInput(f"leads on more than {REDIRECTS_MAX} times; {_ACCEPTED}")


async def _get(url: str, rules: Rules) -> bytes | str:
    """Ask once; the answer is the file, or where it is."""
    target = targets.check(url, rules.allowed)
    found = await targets.addresses(target, rules.allowed, rules.lookup)
    wanted = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
    network = _Pinned(target, found[:ADDRESSES_MAX])
    async with (
        httpcore.AsyncHTTPConnection(wanted.origin, rules.tls, network_backend=network) as connection,
        connection.stream(
            "GET",
            wanted,
            headers=[
                ("Host", target.netloc),
                ("User-Agent", f"hidream/{__version__}"),
                ("Accept-Encoding", "identity"),
                ("Connection", "close"),
            ],
            extensions={"timeout": {"connect": CONNECT_S}},
        ) as answer,
    ):
        location = next((value for name, value in answer.headers if name.lower() == b"location"), b"")
        if answer.status in (301, 302, 303, 307, 308) and location:
            return location.decode("latin-1")
        if answer.status != 200:
            raise InvalidInput(f"could not be fetched: its server answered {answer.status}; {_ACCEPTED}")
        return await _read(answer, rules.max_bytes)


async def _read(answer: httpcore.Response, max_bytes: int) -> bytes:
    data = bytearray()
    async for chunk in answer.aiter_stream():
        data += chunk
        if len(data) > max_bytes:
            raise InvalidInput(f"has more than {max_bytes} bytes, the most that is accepted")
    return bytes(data)


class _Pinned(httpcore.AsyncNetworkBackend):
    """Opens connections to the addresses of a target that were checked, and to no others; TLS verifies its name."""

    def __init__(self, target: Target, addresses: list[Address]) -> None:
        self._target = target
        self._addresses = addresses
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (httpcore's signature)
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        assert (host, port) == (self._target.host, self._target.port), "a connection is made for one target"
        share = timeout / len(self._addresses) if timeout else None
        for address in self._addresses[:-1]:
            try:
                return await self._sockets.connect_tcp(str(address), port, share)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._sockets.connect_tcp(str(self._addresses[-1]), port, share)
