"""Fetching images from URLs that clients give, under the rules of `outbound/targets`: public addresses, unless allowed.

Redirects are followed. Each request goes through `outbound/network`, which checks the host's addresses. A response is
read up to the maximum size.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urljoin

import httpcore

from hidream.errors import InvalidInput
from hidream.outbound import network, targets
from hidream.outbound.network import CONNECT_S, CheckedNetwork, TlsContext
from hidream.outbound.targets import Allowlist, Resolver
from hidream.outputs.part import Part

TOTAL_S = 20.0
"""The time for all of it, redirects included: 20 MB at 8 Mbit/s."""
REDIRECTS_MAX = 3
"""One to https, one to a mirror, and one to spare."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be fetched: the allowed targets, the maximum size, and the total time."""

    allowed: Allowlist
    max_bytes: int
    total_s: float = TOTAL_S
    connect_s: float = CONNECT_S
    resolve: Resolver = targets.resolve
    tls: TlsContext = field(default_factory=TlsContext)


async def fetch(field: str, url: str, rules: Rules, part: Part) -> None:
    """Fetch a file into a part.

    Raises InvalidInput, which names the request's field, if the fetch fails, and ObjectStoreUnavailable.
    """
    try:
        async with asyncio.timeout(rules.total_s):
            await _follow(field, url, rules, part)
    except TimeoutError as error:
        raise InvalidInput(f"{field} could not be fetched within {rules.total_s:g} s; {_ACCEPTED}") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
        reason = network.connection_error(error, rules.connect_s)
        why = f" ({reason})" if reason else ""
        raise InvalidInput(f"{field} could not be fetched: its server cannot be reached{why}; {_ACCEPTED}") from error


_ACCEPTED = "accepted: a URL that answers with a file"


async def _follow(field: str, url: str, rules: Rules, part: Part) -> None:
    for _ in range(REDIRECTS_MAX + 1):
        location = await _get(field, url, rules, part)
        if location is None:
            return
        url = urljoin(url, location)
    raise InvalidInput(f"{field} redirects more than {REDIRECTS_MAX} times; {_ACCEPTED}")


async def _get(field: str, url: str, rules: Rules, part: Part) -> str | None:
    """Send one request. Write the file into the part, or return the location of a redirect."""
    checked = CheckedNetwork(targets.check(url, rules.allowed, field), rules.allowed, rules.resolve)
    async with network.send_request(
        checked, rules.tls, rules.connect_s, "GET", [("Accept-Encoding", "identity")]
    ) as response:
        location = network.header(response, "location")
        if response.status in (301, 302, 303, 307, 308) and location:
            return location
        if response.status != 200:
            raise InvalidInput(f"{field} could not be fetched: its server answered {response.status}; {_ACCEPTED}")
        async with aclosing(cast("AsyncGenerator[bytes]", response.aiter_stream())) as pieces:
            async for piece in pieces:
                if part.size_bytes + len(piece) > rules.max_bytes:
                    raise InvalidInput(f"{field} has more than {rules.max_bytes} bytes, the most that is accepted")
                await part.write(piece)
    return None
