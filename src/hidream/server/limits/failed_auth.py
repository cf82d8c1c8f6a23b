"""Keys that nobody has: who sends many of them is slowed down, by address.

A key of 256 random bits is not found by trying; the look-ups are what costs. An address may be wrong `BURST` times at
once, and `PER_S` times a second from then on. Beyond that the answer to a wrong key comes `DELAY_S` later, as a 429. A
right key from the same address, which may be a proxy's with everybody behind it, is never delayed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from hidream.errors import TooMany

BURST, PER_S = 60, 1.0
DELAY_S = 2.0
DELAYED_MAX = 100
"""Answers that are delayed at a time, since each holds a connection; more are given at once."""
ADDRESSES_MAX = 4096
"""Addresses that are remembered, a few hundred KB; beyond, whoever was wrong the longest ago is forgotten."""


class FailedAuthThrottle:
    """What this process has seen of wrong keys."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, delay_s: float = DELAY_S) -> None:
        self._clock = clock
        self._delay_s = delay_s
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # guesses, as of when
        self._waiting = 0

    async def failed(self, address: str) -> None:
        """Count a wrong key. Raises TooMany, some time later, if there were too many from this address."""
        whose, now = _network(address), self._clock()
        left, since = self._left.get(whose, (float(BURST), now))
        left = min(float(BURST), left + PER_S * (now - since))
        allowed = left >= 1
        self._left[whose] = (left - 1 if allowed else left, now)
        self._left.move_to_end(whose)
        if len(self._left) > ADDRESSES_MAX:
            self._left.popitem(last=False)
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
    """Give what one client has: an address of IPv4, or 64 bits of IPv6."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if known.version == 4:
        return address
    return str(known.ipv4_mapped or ipaddress.ip_network((int(known) >> 64 << 64, 64)))
