"""The background loops of an API process: deliver webhooks, sweep, and fail tasks that no worker serves.

Any number of processes may run them on one database. If a loop raises an unexpected exception, this is logged and the
loop is restarted: an error in it must not end the process that serves clients.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from hidream.server.background.sweep import Sweep
from hidream.server.background.unserved import Unserved
from hidream.server.background.webhook_loop import WebhookLoop
from hidream.server.service import Service

RESTART_S = 5.0
"""The pause before a loop that has raised is restarted."""

logger = logging.getLogger(__name__)


async def run(service: Service) -> None:
    """Run the loops until this process stops, or the call is cancelled."""
    await service.metrics.begin()
    loops = [("webhooks", WebhookLoop(service).run), ("sweep", Sweep(service).run)]
    if service.settings.server.unserved_s:
        loops.append(("unserved", Unserved(service).run))
    async with asyncio.TaskGroup() as tasks:
        for name, loop in loops:
            tasks.create_task(_run_loop(name, loop, service))


async def _run_loop(name: str, loop: Callable[[], Awaitable[None]], service: Service) -> None:
    while not service.database.changes.stopped:
        try:
            await loop()
        except Exception:  # an edge of the process: see the module's docstring
            logger.exception("loop_raised name=%s", name)
            await asyncio.sleep(RESTART_S)
