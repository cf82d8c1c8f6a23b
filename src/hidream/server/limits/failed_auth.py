"""Failed authentication: an address that sends many unknown keys is slowed down.

A key has 256 random bits and cannot be guessed, but each guess costs a look-up. An address may send `BURST` unknown
keys at once, and `PER_S` a second after that. Beyond that, the response to an unknown key is a 429 and comes `DELAY_S`
later. A valid key from the same address is never delayed, because the address may be a proxy's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections.abc import Callable

from cachetools import LRUCache

from hidream.errors import TooMany

BURST, PER_S = 60, 1.0
DELAY_S = 2.0
DELAYED_MAX = 100
"""Responses that are delayed at a time, because each holds a connection; others are sent without delay."""
ADDRESSES_MAX = 4096
"""Addresses in memory, a few hundred KB; beyond that, the one whose last failure is the oldest is dropped."""


class FailedAuthThrottle:
    """Counts the unknown keys that were sent to this process, by address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, delay_s: float = DELAY_S) -> None:
        self._clock = clock
        self._delay_s = delay_s
        self._left: LRUCache[str, tuple[float, float]] = LRUCache(ADDRESSES_MAX)  # failures left, and at what time
        self._waiting = 0

    async def failed(self, address: str) -> None:
        """Count an unknown key. Raises TooMany, after a delay, if this address has sent too many."""
        network, now = _network(address), self._clock()
        left, since = self._left.get(network, (float(BURST), now))
        left = min(float(BURST), left + PER_S * (now - since))
        allowed = left >= 1
        self._left[network] = (left - 1 if allowed else left, now)
        if not allowed:
            await self._delay()
            after_s = math.ceil((1 - left) / PER_S)
            raise TooMany("the API key is not known, and this address has sent too many unknown keys", after_s)

    async def _delay(self) -> None:
        if self._waiting >= DELAYED_MAX:
            return
        self._waiting += 1
        try:
            await asyncio.sleep(self._delay_s)
        finally:
            self._waiting -= 1


def _network(address: str) -> str:
    """Return the network that one client usually has: an IPv4 address, or a /64 network of IPv6."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if known.version == 4:
        return address
    return str(known.ipv4_mapped or ipaddress.ip_network((int(known) >> 64 << 64, 64)))
