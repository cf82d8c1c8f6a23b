"""What an API process does beside answering: it delivers webhooks, sweeps, and fails what nobody serves.

Any number of processes do so on one database. A loop that raises what nobody has foreseen is logged and begun anew:
a fault in it must not end the process that answers clients.
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
"""Before a loop that has raised is begun anew."""

logger = logging.getLogger(__name__)


async def run(service: Service) -> None:
    """Work until this process is about to leave, or this is cancelled."""
    await service.metrics.begin()
    working = [("webhooks", WebhookLoop(service).run), ("sweep", Sweep(service).run)]
    if service.settings.server.unserved_s:
        working.append(("unserved", Unserved(service).run))
    async with asyncio.TaskGroup() as loops:
        for name, loop in working:
            loops.create_task(_kept_up(name, loop, service))


async def _kept_up(name: str, loop: Callable[[], Awaitable[None]], service: Service) -> None:
    while not service.database.changes.stopped:
        try:
            await loop()
        except Exception:  # the edge: see above
            logger.exception("loop_raised name=%s", name)
            await asyncio.sleep(RESTART_S)
