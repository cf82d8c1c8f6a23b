"""Fails tasks whose model no worker has served for as long as the operator allows (`[server] unserved_s`).

Any number of processes may do so at once; each task fails once.
"""

from __future__ import annotations

import asyncio
import logging

from hidream.errors import DatabaseUnavailable
from hidream.server.service import Service
from hidream.store import predictions

EVERY_S = 60.0
"""The longest interval between two checks; with a short `[server] unserved_s`, it is a quarter of that."""
PAUSE_S = 0.05
"""The pause between two transactions, so that submissions come first."""

logger = logging.getLogger(__name__)


class Unserved:
    """One process's loop that fails such tasks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def run(self) -> None:
        """Check at intervals until this process stops."""
        changes = self._service.database.changes
        every_s = min(EVERY_S, self._service.settings.server.unserved_s / 4)
        clock = asyncio.get_running_loop().time
        while not changes.stopped:
            try:
                await self.once()
            except DatabaseUnavailable as error:
                logger.warning("unserved_failed error=%s", error.message)
            again = clock() + every_s
            while not changes.stopped and clock() < again:  # noqa: ASYNC110 - `stop` sets no event
                await asyncio.sleep(min(1.0, max(again - clock(), 0)))

    async def once(self) -> int:
        """Fail all tasks that have waited for too long; return how many. Raises DatabaseUnavailable."""
        failed = 0
        while count := await predictions.abandon(self._service.database, self._service.settings.server.unserved_s):
            failed += count
            await asyncio.sleep(PAUSE_S)
        if failed:
            logger.warning("unserved_tasks_failed count=%d", failed)
        return failed
