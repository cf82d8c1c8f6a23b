"""Sums over very many rows, made beside the transactions that need them, and good for a while.

A transaction that adds up a million rows holds up all that write meanwhile. So the sum of a name that has many rows is
made before, by a connection that only reads, at most once in a while; what this process adds since then is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

EXACT_ROWS_MAX = 10_000
"""Rows that a transaction may add up itself, in a few milliseconds: up to there, its sum is exact."""
CACHED_MS = 10_000
"""For how long a sum of more rows is good. What other processes add or remove meanwhile is not seen before."""


@dataclass(slots=True)
class _Sum:
    """What was added up last, and when: of `rows` rows, and whatever this process has added since then."""

    made_ms: int = 0
    rows: int = 0
    total: int = 0
    added: int = 0
    making: asyncio.Lock = field(default_factory=asyncio.Lock)


class CachedSums:
    """One process's sums, by name."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._sums: dict[str, _Sum] = {}

    async def prepare(self, name: str, add_up: Callable[[], Awaitable[tuple[int, int]]]) -> None:
        """Have a sum that is good; `add_up` gives the number of rows, and their sum. Raises what it does."""
        known = self._sums.setdefault(name, _Sum())
        async with known.making:
            now = self._now_ms()
            if known.made_ms and 0 <= now - known.made_ms < CACHED_MS:
                return
            before = known.added
            known.rows, known.total = await add_up()
            known.added -= before  # what came while it was made may be in it or not, and so it counts
            known.made_ms = now

    def large(self, name: str) -> int | None:
        """Give the sum of a name that has many rows; None if it has few, or was never prepared."""
        known = self._sums.get(name)
        return known.total + known.added if known is not None and known.rows > EXACT_ROWS_MAX else None

    def add(self, name: str, number: int) -> None:
        """Count what a transaction of this process adds, before it commits: so that two at once see each other."""
        if name in self._sums:
            self._sums[name].added += number
