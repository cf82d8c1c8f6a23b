"""HTTP requests to hosts that clients name, only to addresses that were checked.

`send_request` uses a new connection for each request. `CheckedNetwork` opens it: it resolves the name once, has every
address checked by `targets`, and connects to one of them. Proxies are not used, redirects are not followed, and
responses are not decompressed. The environment determines only the trusted certificates (`TlsContext`: `SSL_CERT_FILE`,
`SSL_CERT_DIR`).

This file does not know what is sent, or what a response means: `webhooks/delivery` and `server/fetch` do.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import cast

import httpcore

from hidream import __version__
from hidream.outbound import targets
from hidream.outbound.targets import Address, Allowlist, Resolver, Target

CONNECT_S = 5.0
"""The time for each of name resolution, connection and TLS handshake; a reachable host needs a second."""

ADDRESSES_PER_FAMILY = 2
"""How many of a host's addresses are tried: each gets its share of the time to connect, and with more of them, a
distant one would have too little."""

Headers = Iterable[tuple[str, str]]


class TlsContext:
    """The TLS context: by default, it trusts the authorities of the system and of certifi.

    Reading the authorities takes up to 0.1 s, so a process has one TlsContext and reads them on first use.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self._reading = threading.Lock()

    async def context(self) -> ssl.SSLContext:
        """Return the context, always the same one."""
        return await asyncio.to_thread(self._read) if self._context is None else self._context

    def _read(self) -> ssl.SSLContext:
        with self._reading:
            if self._context is None:
                self._context = httpcore.default_ssl_context()
            return self._context


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """A network backend that connects only to the checked addresses of one target.

    The HTTP client still uses the host's name, so TLS verifies the name.
    """

    def __init__(self, target: Target, allowed: Allowlist, resolve: Resolver) -> None:
        self.target = target
        self._allowed = allowed
        self._resolve = resolve
        self._sockets = httpcore.AnyIOBackend()
        self._opened: httpcore.AsyncNetworkStream | None = None

    async def aclose(self) -> None:
        """Close the connection: httpcore does not close one whose TLS handshake is cancelled."""
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
        """Connect to the target. Raises InvalidInput if it is not allowed, ConnectError, ConnectTimeout."""
        assert (host, port) == (self.target.host, self.target.port), "a connection is made for one target"
        assert self._opened is None, "one connection per target"
        self._opened = await self._first(_both_families(await self._addresses(timeout)), timeout)
        return self._opened

    async def _addresses(self, within_s: float | None) -> list[Address]:
        try:
            async with asyncio.timeout(within_s):
                return await targets.addresses(self.target, self._allowed, self._resolve)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error
        except OSError as error:
            raise httpcore.ConnectError from error

    async def _first(self, found: list[Address], within_s: float | None) -> httpcore.AsyncNetworkStream:
        """Connect to the first reachable address; each gets an equal share of the time."""
        share_s = within_s / len(found) if within_s else None
        for address in found[:-1]:
            try:
                return await self._sockets.connect_tcp(str(address), self.target.port, share_s)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._sockets.connect_tcp(str(found[-1]), self.target.port, share_s)


@asynccontextmanager
async def send_request(
    network: CheckedNetwork,
    tls: TlsContext,
    connect_s: float,
    method: str,
    headers: Headers,
    content: bytes | None = None,
) -> AsyncIterator[httpcore.Response]:
    """Send one request to the network's target; yield the response, of which only the head was read.

    Raises what CheckedNetwork and httpcore raise; `connection_error` turns that into text. Only the time to connect is
    limited, not that of the response.
    """
    target = network.target
    url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
    context = await tls.context() if target.scheme == "https" else None
    own_headers = [("Host", target.netloc), ("User-Agent", f"hidream/{__version__}"), ("Connection", "close")]
    async with (
        aclosing(network),
        httpcore.AsyncHTTPConnection(url.origin, context, network_backend=network) as connection,
        connection.stream(
            method,
            url,
            headers=[*own_headers, *headers],
            content=content,
            extensions={"timeout": {"connect": connect_s}},
        ) as response,
    ):
        yield response


def header(response: httpcore.Response, name: str) -> str:
    """Return the first header with a name, which is given in lower case; empty if there is none."""
    wanted = name.encode("ascii")
    found = next((value for given, value in response.headers if given.lower() == wanted), b"")
    return found.decode("latin-1")


async def read_body(response: httpcore.Response, enough_bytes: int) -> bytes:
    """Read a response to its end, or until more than `enough_bytes` were read."""
    data = bytearray()
    async with aclosing(cast("AsyncGenerator[bytes]", response.aiter_stream())) as chunks:
        async for chunk in chunks:
            data += chunk
            if len(data) > enough_bytes:
                break
    return bytes(data)


def connection_error(error: Exception, connect_s: float) -> str:
    """Describe why there was no connection, without any address; empty if it was another error."""
    root = _root(error)
    match error, root:
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
    return ""


def _both_families(found: list[Address]) -> list[Address]:
    """Keep a few of each family, in their order: a machine may have a route to one only."""
    kept = {version: [a for a in found if a.version == version][:ADDRESSES_PER_FAMILY] for version in (4, 6)}
    return [address for address in found if address in kept[address.version]]


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
