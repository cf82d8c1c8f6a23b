"""Queue positions and worker counts, cached for a moment, so that polling clients do not each cost a query."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from hidream.store import history, workers
from hidream.store.database import Database
from hidream.store.history import QueuePosition, QueueSnapshot
from hidream.store.prediction import Prediction

TTL_S = 1.0
"""The maximum age of a cached result; clients poll about once a second."""
QUERY_TIME_SHARE = 0.02
"""The largest share of time that queries may take: a queue of 100,000 tasks is read less often than one of ten."""


@dataclass(slots=True)
class _Snapshot:
    """The last snapshot of a model's queue, and until when it is valid."""

    line: QueueSnapshot | None = None
    until: float = 0.0
    querying: asyncio.Lock = field(default_factory=asyncio.Lock)


class QueueStatus:
    """One process's view of the queue."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._snapshots: dict[str, _Snapshot] = defaultdict(_Snapshot)

    async def position(self, prediction: Prediction) -> QueuePosition:
        """Return the position of a waiting task, also if it was enqueued after the snapshot."""
        snapshot = self._snapshots[prediction.model]
        if (line := snapshot.line) is None or self._clock() >= snapshot.until:
            line = await self._query(snapshot, prediction.model)
        return line.place(prediction)

    async def _query(self, snapshot: _Snapshot, model: str) -> QueueSnapshot:
        async with snapshot.querying:
            began = self._clock()
            if snapshot.line is None or began >= snapshot.until:  # else another request has queried meanwhile
                snapshot.line = await history.queue_snapshot(self._database, model)
                now = self._clock()
                snapshot.until = now + max(TTL_S, (now - began) / QUERY_TIME_SHARE)
            return snapshot.line


class WorkerCounts:
    """One process's view of the workers that were seen in the last `seen_s` seconds."""

    def __init__(self, database: Database, seen_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seen_s = seen_s
        self._database = database
        self._clock = clock
        self._counted: Counter[str] = Counter()
        self._until = -math.inf
        self._querying = asyncio.Lock()

    async def workers(self, model: str) -> int:
        """Count the workers that serve a model."""
        if self._clock() >= self._until:
            await self._count()
        return self._counted[model]

    async def _count(self) -> None:
        async with self._querying:
            if self._clock() >= self._until:  # else another request has counted meanwhile
                self._counted = workers.count_by_model(await workers.ready(self._database, self.seen_s))
                self._until = self._clock() + TTL_S
