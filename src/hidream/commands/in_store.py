"""Calls of the store by commands: the database is opened for one call. Also who calls, for the audit log."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from hidream.settings.tables import Settings

if TYPE_CHECKING:
    from hidream.store.database import Database

T = TypeVar("T")


def in_store(config: Settings, call: Callable[[Database], Awaitable[T]], *, make: bool = False) -> T:
    """Open the database for one call; a missing database is an error, unless `make` creates it."""
    from hidream.store.database import Database

    async def run() -> T:
        async with Database.open(config.database_url, make=make) as database:
            return await call(database)

    return asyncio.run(run())


def actor() -> str:
    """Who runs this command, for the audit log: the names of the user and the host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user id without a name, as in a container; Windows without USERNAME
        user = f"uid-{os.getuid()}" if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}"
