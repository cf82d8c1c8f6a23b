"""The only way from this process to a host that a stranger has named: one request, to an address that was checked.

`ask` sends it over a connection of its own, which `CheckedNetwork` opens: it resolves the name once, has every address
checked by `targets`, and connects to one of those. Proxies are not used, redirects are not followed, answers are not
unpacked; whom TLS trusts (`Trust`) is all that the environment decides (`SSL_CERT_FILE`, `SSL_CERT_DIR`).

Does not know what is sent, or what an answer means: webhooks do (`delivery`), and images (`server/fetch`).
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
"""For each of name, connection and TLS: who is reachable needs a second."""

ADDRESSES_PER_FAMILY = 2
"""How many of a host's addresses are tried: each gets its share of the time to connect, and with more of them, a
distant one would have too little."""

Headers = Iterable[tuple[str, str]]


class TlsContext:
    """Whose certificates are accepted: those of the system's authorities and of certifi's, or what a context says.

    Reading the authorities takes up to 0.1 s, so a process has one of these, and reads when it first needs them.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self._reading = threading.Lock()

    async def context(self) -> ssl.SSLContext:
        """Give the context, always the same one."""
        return await asyncio.to_thread(self._read) if self._context is None else self._context

    def _read(self) -> ssl.SSLContext:
        with self._reading:
            if self._context is None:
                self._context = httpcore.default_ssl_context()
            return self._context


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Opens connections to the addresses of a target that were checked, and to no others.

    The HTTP client above goes on speaking of the host by its name, so TLS verifies the name.
    """

    def __init__(self, target: Target, allowed: Allowlist, resolve: Resolver) -> None:
        self.target = target
        self._allowed = allowed
        self._resolve = resolve
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
        """Connect to the target. Raises InvalidInput if it may not be called, ConnectError, ConnectTimeout."""
        assert (host, port) == (self.target.host, self.target.port), "a connection is made for one target"
        assert self._opened is None, "a target is asked once"
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
        """Connect to the first that can be reached; each has its share of the time."""
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
    """Send one request to the network's target; gives the answer, of which nothing but the head is read.

    Raises what CheckedNetwork and httpcore do; `unreached` says it in words. How long the answer takes is not limited.
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
    """Find the first header of a name, which is given in lower case; empty when there is none."""
    wanted = name.encode("ascii")
    found = next((value for given, value in response.headers if given.lower() == wanted), b"")
    return found.decode("latin-1")


async def read_body(response: httpcore.Response, enough_bytes: int) -> bytes:
    """Read an answer to its end, or until there are more than `enough_bytes`."""
    data = bytearray()
    async with aclosing(cast("AsyncGenerator[bytes]", response.aiter_stream())) as chunks:
        async for chunk in chunks:
            data += chunk
            if len(data) > enough_bytes:
                break
    return bytes(data)


def connection_error(error: Exception, connect_s: float) -> str:
    """Say why there was no connection, in words that name no address; empty when something else went wrong."""
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
