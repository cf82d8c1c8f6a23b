"""The server process: it opens the database and the socket, creates the first key, and runs uvicorn and the loops.

`hidream serve` also keeps a worker as its child process. `hidream api` does not, so that any number of API processes
and workers, on any machines, can share one database. When a process is told to stop, /readyz reports it, new
connections are refused, and long polls and event streams end. Open requests and webhooks have GRACE_S to finish. The
worker requeues its unfinished tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import uvicorn

from hidream import systemd
from hidream.errors import ConfigurationError, DatabaseGone, DatabaseUnavailable, ObjectStoreUnavailable
from hidream.server import allocator, tracing
from hidream.server.app import create_app
from hidream.server.background import loops
from hidream.server.edge.connections import Connections
from hidream.server.edge.listener import connection_limit, listen
from hidream.server.service import Service, assemble
from hidream.server.supervisor import keep_worker
from hidream.settings.tables import Settings
from hidream.store import keys
from hidream.store.database import Database
from hidream.store.keys import Key

FIRST = "first"
"""The name of the key that a server creates if there is none."""
KEY_CHARS = 16
"""The minimum length of a key that an operator chooses."""
GRACE_S = 10
"""How long open requests, and then running webhook deliveries, may take to finish once the server is told to stop."""

logger = logging.getLogger(__name__)


def run(settings: Settings, *, with_worker: bool) -> int:
    """Serve until told to stop by SIGTERM or SIGINT.

    Returns the exit status: 0, 1 if no worker can be started any more, or that of DatabaseGone.

    Raises ConfigurationError if a setting is wrong or the first worker cannot start.
    """
    allocator.configure_allocator()
    return asyncio.run(_run(settings, with_worker))


async def _run(settings: Settings, with_worker: bool) -> int:
    _check_key(settings.api_key)
    beating = asyncio.create_task(systemd.beat())
    try:
        return await _run_on_database(settings, with_worker)
    finally:
        beating.cancel()


async def _run_on_database(settings: Settings, with_worker: bool) -> int:
    async with Database.open(settings.database_url) as database:
        service = assemble(settings, database)
        await _check_stores(service)
        with listen(settings.server) as listener, contextlib.closing(service.input_images):
            server = _uvicorn(service)
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, _stop, server, service)
            async with _first_key(settings, database) as secret:
                _say(f"hidream is listening on {_url(settings.server.host, listener)}")
                if secret:
                    _say(f"API key (shown once): {secret}")
                workers = await _serve(service, server, listener, with_worker)
                if database.gone.is_set():
                    return DatabaseGone.exit_status
                if workers == 1:
                    raise ConfigurationError("the worker cannot start; the log above says why")
    return int(workers > 0)


def _stop(server: uvicorn.Server, service: Service) -> None:
    """Stop the server, the requests that wait for an image, and the validation of input images."""
    server.should_exit = True
    service.database.changes.stop()
    service.input_images.stop()


async def _serve(service: Service, server: uvicorn.Server, listener: socket.socket, with_worker: bool) -> int:
    """Serve until told to stop, and return 0; or until no worker can be started, and return how many were."""
    background = asyncio.create_task(loops.run(service))
    worker = asyncio.create_task(keep_worker(service.settings, service.database)) if with_worker else None
    if worker is not None:
        worker.add_done_callback(lambda _: _stop(server, service))
    gone = asyncio.create_task(service.database.gone.wait())
    gone.add_done_callback(lambda _: _stop(server, service))
    await server.serve(sockets=[listener])
    gave_up = worker is not None and worker.done()
    await asyncio.gather(_ended(worker, 0), _ended(background, GRACE_S), _ended(gone, 0))
    return worker.result() if worker is not None and gave_up else 0


def _check_key(api_key: str) -> None:
    """Refuse a key that could be guessed; it has all scopes. Raises ConfigurationError."""
    if 0 < len(api_key) < KEY_CHARS:
        raise ConfigurationError(
            f"HIDREAM_API_KEY has {len(api_key)} characters; accepted: {KEY_CHARS} or more, such as those of "
            "`openssl rand -hex 24`"
        )


async def _check_stores(service: Service) -> None:
    """Check that the object stores can be written to. One that is only unavailable may recover, so it is accepted."""
    for store in (service.outputs, service.uploads):
        with contextlib.suppress(ObjectStoreUnavailable):
            await store.check()


async def _ended(task: asyncio.Task[Any] | None, grace_s: float) -> None:
    """Wait for a task to end, then cancel it."""
    if task is None:
        return
    await asyncio.wait([task], timeout=grace_s)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@asynccontextmanager
async def _first_key(settings: Settings, database: Database) -> AsyncIterator[str | None]:
    """Ensure that there is a key that fits the pepper. Yield the secret if a key was created, else None.

    If the block raises, the new key is deleted, so that the next start shows a key again.
    """
    pepper = settings.store.key_pepper
    if settings.api_key:
        await keys.register(database, "HIDREAM_API_KEY", settings.api_key, pepper=pepper)
    known = await keys.list_keys(database)
    if known:
        await keys.check_pepper(database, pepper)  # after `list_keys`: another process may be creating a key
        _remind(known)
        yield None
        return
    key, secret = await keys.create(database, FIRST, pepper=pepper)
    try:
        yield secret
    except BaseException:
        with contextlib.suppress(DatabaseUnavailable):
            if await keys.delete_unused(database, key.id):
                logger.warning("first_key_void id=%s reason=%s", key.id, "the start failed; the next shows another")
        raise


def _remind(known: Sequence[Key]) -> None:
    """Log how to replace the first key: its process may have died before it showed the secret."""
    valid = [key for key in known if key.revoked_ms is None]
    if [key.name for key in valid] == [FIRST]:
        logger.info("first_key_known id=%s if_lost=%s", valid[0].id, f"hidream keys rotate {valid[0].id}")


def _uvicorn(service: Service) -> uvicorn.Server:
    settings = service.settings
    connections = Connections(connection_limit(settings.server.connections_max, settings.webhooks.together_max))
    return uvicorn.Server(
        uvicorn.Config(
            tracing.traced(create_app(service), os.environ),
            http=cast(type[asyncio.Protocol], connections.connection),  # it is only called
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
    )


def _url(host: str, listener: socket.socket) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{listener.getsockname()[1]}"


def _say(line: str) -> None:
    if sys.stdout is None:  # closed before Python started
        raise ConfigurationError(
            "standard output is closed, but the address and the key are written to it; accepted: a file, or a pipe"
        )
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
