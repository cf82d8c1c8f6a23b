"""The worker beside the server: started with it, started again when it dies, and ended with it.

The worker's standard input is a pipe from here, so that it ends even when this process is killed. When it
dies, its tasks are put back into the queue at once instead of when their leases end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process

from hidream.errors import ConfigurationError, StoreUnavailable
from hidream.settings.sources import to_environ
from hidream.settings.tables import Settings
from hidream.store import predictions, workers
from hidream.store.database import Database

BACKOFF_S = (0.0, 1.0, 5.0, 15.0, 30.0)
"""Pauses before a worker is started again: after its first death, its second, ..., and all further ones."""

STEADY_S = 60.0
"""A worker that has lived this long is forgiven the deaths before."""

GRACE_S = 10.0
"""What a worker is given to hand its tasks back, after it has gone on with them for `[worker] finish_s`."""

logger = logging.getLogger(__name__)


async def keep_worker(settings: Settings, database: Database) -> int:
    """Keep a worker running until cancelled; where starting one is hopeless, return how many were started."""
    clock = asyncio.get_running_loop().time
    starts = deaths = 0
    while True:
        starts += 1
        started = clock()
        process = await _start(settings)
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            await _stop(process, settings.worker.finish_s + GRACE_S)
            raise
        logger.warning("worker_died pid=%d status=%d", process.pid, status)
        await _bury(settings, database, process.pid)
        if status == ConfigurationError.exit_status:
            return starts
        if clock() - started > STEADY_S:
            deaths = 0
        await asyncio.sleep(BACKOFF_S[min(deaths, len(BACKOFF_S) - 1)])
        deaths += 1


async def _start(settings: Settings) -> Process:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HIDREAM_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "hidream.cli", "worker", "--with-parent"),
        stdin=PIPE,
        env=inherited | to_environ(settings),
    )
    logger.info("worker_started pid=%d", process.pid)
    return process


async def _stop(process: Process, within_s: float) -> None:
    assert process.stdin is not None, "it was started with a pipe"
    process.stdin.close()
    try:
        async with asyncio.timeout(within_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    logger.info("worker_stopped pid=%d status=%s", process.pid, process.returncode)


async def _bury(settings: Settings, database: Database, pid: int) -> None:
    lost = workers.worker_id(pid)
    try:
        await predictions.recover(database, settings.worker.attempts_max, lost)
        await workers.leave(database, lost)
    except StoreUnavailable as error:  # the leases will say the same, a little later
        logger.warning("worker_not_buried pid=%d error=%s", pid, error.message)
