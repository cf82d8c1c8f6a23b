"""The workers: a row is a process with a loaded model, as long as it sends heartbeats.

A worker's id names its host and process. So a row with a new worker's own id belongs to a dead process. A worker that
leaves keeps its row, without a version, until another one serves its models: the row tells when they were last served.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from hidream.store.database import Database
from hidream.store.schema import WORKERS

FORGET_MS = 24 * 3600 * 1000
"""A row that was not refreshed for this long is removed by the next worker that registers and serves its models."""
FORGET_ALL_MS = 400 * FORGET_MS
"""The same, whatever that worker serves: longer than the longest `[server] unserved_s`."""

LOADED = b"."
"""The heartbeat that a worker sends once a second to its parent process after it has loaded its models."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that owns models: their names in the API, and the version in its images."""

    id: str
    models: Sequence[str]
    version: str


def worker_id(pid: int) -> str:
    """Return the id of the worker that is process `pid` on this host."""
    return f"{socket.gethostname()}:{pid}"


async def register(database: Database, worker: Worker) -> None:
    """Insert the row of a worker whose models are loaded, and remove stale rows."""
    now = database.now_ms()
    old = sa.select(WORKERS.c.id, WORKERS.c.models, WORKERS.c.seen_ms).where(WORKERS.c.seen_ms < now - FORGET_MS)
    row = {"id": worker.id, "models": list(worker.models), "version": worker.version, "seen_ms": now}
    async with database.write() as connection:
        rows = (await connection.execute(old)).all()
        stale = [r.id for r in rows if set(r.models) <= set(worker.models) or r.seen_ms < now - FORGET_ALL_MS]
        await connection.execute(sa.delete(WORKERS).where(WORKERS.c.id.in_([worker.id, *stale])))
        await connection.execute(sa.insert(WORKERS).values(row))


async def heartbeat(database: Database, worker_id: str) -> None:
    """Record that the worker is alive."""
    statement = sa.update(WORKERS).where(WORKERS.c.id == worker_id).values(seen_ms=database.now_ms())
    async with database.write() as connection:
        await connection.execute(statement)


async def deregister(database: Database, worker_id: str) -> None:
    """Record that the worker has stopped."""
    async with database.write() as connection:
        await connection.execute(sa.update(WORKERS).where(WORKERS.c.id == worker_id).values(version=""))


async def ready(database: Database, within_s: float) -> list[Worker]:
    """Return the workers with a loaded model that were seen in the last `within_s` seconds."""
    since = database.now_ms() - round(within_s * 1000)
    wanted = sa.select(WORKERS.c.id, WORKERS.c.models, WORKERS.c.version).where(WORKERS.c.seen_ms >= since)
    wanted = wanted.where(WORKERS.c.version != "")
    async with database.read() as connection:
        return [Worker(*row) for row in await connection.execute(wanted.order_by(WORKERS.c.id))]


def count_by_model(workers: Iterable[Worker]) -> Counter[str]:
    """Count the workers of each model; a model without workers has 0."""
    return Counter(model for worker in workers for model in set(worker.models))
