"""The worker beside the server: started with it, started again when it dies, and ended with it.

The worker's standard input is a socket to here, so that it ends even when this process is killed, and can say once a
second that it lives (`worker/heartbeat.py`). When it dies, its tasks are put back into the queue at once
instead of when their leases end. One that says nothing any more is killed: it may hold the database's lock, for which
all others wait.
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
"""Pauses before a worker is started again: after its first death, its second, ..., and all further ones."""

STEADY_S = 60.0
"""A worker that has lived this long is forgiven the deaths before."""

GRACE_S = 10.0
"""What a worker is given to hand its tasks back, after it has gone on with them for `[worker] finish_s`."""

SILENT_S = 30.0
"""How long a worker that has loaded may say nothing; three leases, where that is longer."""
SILENT_LOCKED_S = 5.0
"""The same while nobody can write to the database: it is probably this worker that keeps the others from it."""
SILENT_LOADING_S = 300.0
"""The same while it loads: importing from a slow disk stops everything in a process."""
LOOK_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Child:
    """A worker's process, this end of the socket that is its standard input, and when it last said what."""

    process: Process
    line: socket.socket
    heard_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    loaded: bool = False

    def hear(self) -> None:
        """Take what it has said; to be called when there is something."""
        try:
            words = self.line.recv(4096)
        except OSError:
            words = b""
        if not words:
            asyncio.get_running_loop().remove_reader(self.line)
            return
        self.heard_at = asyncio.get_running_loop().time()
        self.loaded = self.loaded or workers.LOADED in words

    def close(self) -> None:
        """Hang up: the worker then stops."""
        if self.line.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.line)
            self.line.close()


async def keep_worker(settings: Settings, database: Database) -> int:
    """Keep a worker running until cancelled; where starting one is hopeless, return how many were started.

    None is started on a database that is gone: it would make a new one.
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
    inherited.pop("NOTIFY_SOCKET", None)  # systemd hears this process, not its children
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
    """Kill a worker that has said nothing for too long."""
    clock = asyncio.get_running_loop().time
    usual_s = max(SILENT_S, 3 * settings.worker.lease_s)
    while True:
        before = clock()
        await asyncio.sleep(LOOK_S)
        if clock() - before > 2 * LOOK_S:  # it was this process that stood still
            child.heard_at = clock()
        silent_s = clock() - child.heard_at
        limit_s = usual_s if child.loaded else SILENT_LOADING_S
        if child.loaded and silent_s > SILENT_LOCKED_S and not await _writable(database):
            limit_s = SILENT_LOCKED_S
        if silent_s > limit_s:
            logger.error("worker_silent pid=%d silent_s=%.0f because=killed", child.process.pid, silent_s)
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
    except DatabaseUnavailable as error:  # the leases will say the same, a little later
        logger.warning("worker_not_buried pid=%d error=%s", pid, error.message)
