"""Where tasks stand in the queue, for all who ask: the line is looked at once in a while, not once for each of them."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from hidream.store import history
from hidream.store.database import Database
from hidream.store.history import Line, Place
from hidream.store.prediction import Prediction

FRESH_S = 1.0
"""How old what is told may be: clients ask about once a second."""
SHARE = 0.02
"""Of the time, the most that goes into looking: a line of 100,000 tasks is looked at less often than one of ten."""


@dataclass(slots=True)
class _Seen:
    """The line of a model as it was seen last, and until when that is good enough."""

    line: Line | None = None
    until: float = 0.0
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Waiting:
    """One process's view of the queue."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._seen: dict[str, _Seen] = defaultdict(_Seen)

    async def place(self, prediction: Prediction) -> Place:
        """Say where a task stands that waits. One that came since the line was seen is looked for by itself."""
        seen = self._seen[prediction.model]
        async with seen.looking:
            began = self._clock()
            if seen.line is None or began >= seen.until:
                seen.line = await history.line(self._database, prediction.model)
                now = self._clock()
                seen.until = now + max(FRESH_S, (now - began) / SHARE)
        return seen.line.place(prediction.id) or await history.place(self._database, prediction)
