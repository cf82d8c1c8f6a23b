"""The server process from its start to its end: database, socket, first key, worker, and uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys

import uvicorn

from hidream.errors import ConfigurationError
from hidream.server.app import create_app
from hidream.server.supervisor import keep_worker
from hidream.settings import Server, Settings
from hidream.store import keys
from hidream.store.database import Database

GRACE_S = 10
"""How long open requests are given to end once the server is told to stop."""


def run(settings: Settings) -> int:
    """Serve until told to stop by SIGTERM or SIGINT; the exit status is 0, or 1 if no worker can be had."""
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    async with Database.open(settings.database_url) as database:
        listener = _listen(settings.server)
        server = _uvicorn(settings, database)

        def stop(*_: object) -> None:
            server.should_exit = True
            database.changes.stop()  # ends the requests that wait for a picture

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        secret = await _first_key(settings, database)
        _say(f"hidream is listening on {_url(settings.server.host, listener)}")
        if secret:
            _say(f"API key (shown once): {secret}")
        worker = asyncio.create_task(keep_worker(settings, database))
        worker.add_done_callback(stop)
        await server.serve(sockets=[listener])
        gave_up = worker.done()
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker
    return int(gave_up)


async def _first_key(settings: Settings, database: Database) -> str | None:
    """See that there is a key; return the secret of one that had to be made."""
    if settings.api_key:
        await keys.register(database, "HIDREAM_API_KEY", settings.api_key)
    if await keys.listed(database):
        return None
    _, secret = await keys.create(database, "first")
    return secret


def _uvicorn(settings: Settings, database: Database) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            create_app(settings, database),
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
    )


def _listen(server: Server) -> socket.socket:
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    try:
        return socket.create_server((server.host, server.port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {server.host}, port {server.port} ({error}); accepted: a free port, or 0"
        ) from error


def _url(host: str, listener: socket.socket) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{listener.getsockname()[1]}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
