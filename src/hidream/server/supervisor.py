"""The supervisor of the worker: it starts the worker, restarts it when it dies, and stops it with the server.

The worker's standard input is a socket to this process. So the worker ends even when this process is killed, and it
sends a heartbeat once a second (`worker/heartbeat.py`). When the worker dies, its tasks are recovered at once instead
of when their leases expire. A worker without heartbeats is killed, because it may hold the database's lock, for which
everybody else waits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from asyncio.subprocess import Process
from dataclasses import dataclass, field

from hidream.errors import ConfigurationError, DatabaseGone, DatabaseUnavailable
from hidream.settings.sources import to_environ
from hidream.settings.tables import Settings
from hidream.store import predictions, workers
from hidream.store.database import Database

BACKOFF_S = (0.0, 1.0, 5.0, 15.0, 30.0)
"""The pauses before a restart: after the first death, the second, ..., and all further ones."""

STEADY_S = 60.0
"""After a worker has lived this long, earlier deaths no longer count."""

GRACE_S = 10.0
"""The time for a worker to requeue its tasks, after `[worker] finish_s` to finish them."""

SILENT_S = 30.0
"""The longest time without a heartbeat of a loaded worker; three leases, if that is longer."""
SILENT_LOCKED_S = 5.0
"""The same while the database cannot be written to: probably this worker holds its lock."""
SILENT_LOADING_S = 300.0
"""The same while the worker loads: imports from a slow disk block the whole process."""
LOOK_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Child:
    """A worker's process, our end of its socket, the time of its last heartbeat, and whether it has loaded."""

    process: Process
    line: socket.socket
    heard_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    loaded: bool = False

    def hear(self) -> None:
        """Read heartbeats; called when the socket is readable."""
        try:
            data = self.line.recv(4096)
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self.line)
            return
        self.heard_at = asyncio.get_running_loop().time()
        self.loaded = self.loaded or workers.LOADED in data

    def close(self) -> None:
        """Close the socket, which stops the worker."""
        if self.line.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.line)
            self.line.close()


async def keep_worker(settings: Settings, database: Database) -> int:
    """Keep a worker running until cancelled. If no worker can be started any more, return how many were started.

    No worker is started if the database file is gone, because it would create a new one.
    """
    clock = asyncio.get_running_loop().time
    starts = deaths = 0
    while not database.check_file():
        starts += 1
        started = clock()
        child = await _start(settings)
        watching = asyncio.create_task(_watch(child, settings, database))
        try:
            status = await child.process.wait()
        except asyncio.CancelledError:
            watching.cancel()
            await _stop(child, settings.worker.finish_s + GRACE_S)
            raise
        watching.cancel()
        child.close()
        logger.warning("worker_died pid=%d status=%d", child.process.pid, status)
        if status == DatabaseGone.exit_status and database.check_file():
            break
        await _recover_tasks(settings, database, child.process.pid)
        if status == ConfigurationError.exit_status:
            return starts
        if clock() - started > STEADY_S:
            deaths = 0
        await asyncio.sleep(BACKOFF_S[min(deaths, len(BACKOFF_S) - 1)])
        deaths += 1
    return starts


async def _start(settings: Settings) -> Child:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HIDREAM_")}
    inherited.pop("NOTIFY_SOCKET", None)  # only this process notifies systemd
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "hidream.cli", "worker", "--with-parent"),
            stdin=theirs.fileno(),
            env=inherited | to_environ(settings),
        )
    child = Child(process, ours)
    asyncio.get_running_loop().add_reader(ours, child.hear)
    logger.info("worker_started pid=%d", process.pid)
    return child


async def _watch(child: Child, settings: Settings, database: Database) -> None:
    """Kill a worker that has sent no heartbeat for too long."""
    clock = asyncio.get_running_loop().time
    usual_s = max(SILENT_S, 3 * settings.worker.lease_s)
    while True:
        before = clock()
        await asyncio.sleep(LOOK_S)
        if clock() - before > 2 * LOOK_S:  # this process itself was blocked
            child.heard_at = clock()
        silent_s = clock() - child.heard_at
        limit_s = usual_s if child.loaded else SILENT_LOADING_S
        if child.loaded and silent_s > SILENT_LOCKED_S and not await _writable(database):
            limit_s = SILENT_LOCKED_S
        if silent_s > limit_s:
            logger.error("worker_silent pid=%d silent_s=%.0f reason=killed", child.process.pid, silent_s)
            child.process.kill()
            return


async def _writable(database: Database) -> bool:
    try:
        await database.check()
    except DatabaseUnavailable:
        return False
    return True


async def _stop(child: Child, within_s: float) -> None:
    child.close()
    process = child.process
    try:
        async with asyncio.timeout(within_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    logger.info("worker_stopped pid=%d status=%s", process.pid, process.returncode)


async def _recover_tasks(settings: Settings, database: Database, pid: int) -> None:
    lost = workers.worker_id(pid)
    try:
        await predictions.recover(database, settings.worker.attempts_max, lost)
        await workers.deregister(database, lost)
    except DatabaseUnavailable as error:  # the tasks are recovered when their leases expire
        logger.warning("worker_not_reaped pid=%d error=%s", pid, error.message)
