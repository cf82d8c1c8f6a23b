"""Cached sums over very many rows, computed outside the transactions that need them.

A transaction that adds up a million rows blocks all writers meanwhile. So a sum over many rows is computed before the
transaction, on a connection that only reads, and cached. What this process adds later is added to the cached sum.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

EXACT_ROWS_MAX = 10_000
"""A transaction adds up as many rows by itself, in a few milliseconds: its sum is exact."""
CACHED_MS = 10_000
"""How long a sum over more rows is cached. What other processes add or remove is seen after that."""


@dataclass(slots=True)
class _Sum:
    """The last sum, over `rows` rows, when it was computed, and what this process has added since."""

    made_ms: int = 0
    rows: int = 0
    total: int = 0
    added: int = 0
    making: asyncio.Lock = field(default_factory=asyncio.Lock)


class CachedSums:
    """The sums of one process, by name."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._sums: dict[str, _Sum] = {}

    async def prepare(self, name: str, add_up: Callable[[], Awaitable[tuple[int, int]]]) -> None:
        """Refresh a sum that is out of date; `add_up` returns the number of rows and their sum. Raises what it does."""
        known = self._sums.setdefault(name, _Sum())
        async with known.making:
            now = self._now_ms()
            if known.made_ms and 0 <= now - known.made_ms < CACHED_MS:
                return
            before = known.added
            known.rows, known.total = await add_up()
            known.added -= before  # what was added meanwhile may be missing from the sum, so it stays counted
            known.made_ms = now

    def large(self, name: str) -> int | None:
        """Return the sum over many rows; None if there are few, or it was never prepared."""
        known = self._sums.get(name)
        return known.total + known.added if known is not None and known.rows > EXACT_ROWS_MAX else None

    def add(self, name: str, number: int) -> None:
        """Count what a transaction of this process adds, before it commits, so that concurrent ones see each other."""
        if name in self._sums:
            self._sums[name].added += number
