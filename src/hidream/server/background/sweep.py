"""Removes what is not kept for ever: predictions older than the operator wants, what clients deleted, and orphans.

Files go first, then rows, so that a death in between leaves nothing behind that nobody knows of. Orphans are files
without a row, as a worker leaves that drew on while its task was deleted. Any number of processes may sweep at once:
each step can be done twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from hidream.errors import DatabaseUnavailable, ObjectStoreUnavailable
from hidream.file_names import first_of
from hidream.outputs.object_store import ObjectStore
from hidream.server.erasure import erase
from hidream.server.service import Service
from hidream.store import audit_log, key_data, retention

EVERY_S = 600.0
"""Pause between two sweeps: what was deleted is gone within a quarter of an hour."""
ORPHANS_EVERY_S = 24 * 3600.0
"""Listing a whole bucket costs money, and orphans are rare."""
ORPHAN_AGE = timedelta(days=1)
"""A file that is older has its row, if it ever gets one: names are written down before files."""
UPLOAD_KEPT_MS = 24 * 3600 * 1000
"""The least for which an upload is kept that a task has used."""
UNUSED_KEPT_MS = 3600 * 1000
"""And one that none has used yet: its task comes at once, or never."""
PAGE = 5000
"""Orphans that one query asks for: each is a scan of the names, and 32,766 parameters are SQLite's most."""
PAUSE_S = 0.05
"""Between two transactions: those who submit come first."""
DAY_MS = 24 * 3600 * 1000

logger = logging.getLogger(__name__)


class Sweep:
    """The sweeps of one process."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def run(self) -> None:
        """Sweep now and then, until this process is about to leave."""
        clock = asyncio.get_running_loop().time
        orphans_at = clock() + EVERY_S
        changes = self._service.database.changes
        while not changes.stopped:
            try:
                await self.once()
                if clock() >= orphans_at:
                    orphans_at = clock() + ORPHANS_EVERY_S
                    await self.orphans()
            except (DatabaseUnavailable, ObjectStoreUnavailable) as error:
                logger.warning("sweep_failed error=%s", error.message)
            await self._rest(EVERY_S * random.uniform(0.8, 1.2))  # noqa: S311 - processes need not sweep together

    async def once(self) -> int:
        """Remove all that is too old or was deleted; say how many predictions. Raises what the stores do."""
        database = self._service.database
        kept_ms = round(self._service.settings.store.retention_days * DAY_MS)
        now = database.now_ms()
        while kept_ms and await retention.expire(database, now - kept_ms):  # noqa: ASYNC110 - a batch each time
            await asyncio.sleep(PAUSE_S)
        await audit_log.purge(database)
        for key_id in await key_data.unfinished_erasures(database):
            await erase(database, self._service.outputs, self._service.uploads, key_id, audit_log.SYSTEM, known_s=0)
        removed = 0
        while not database.changes.stopped:
            uploads_before = now - max(kept_ms, UPLOAD_KEPT_MS) if kept_ms else 0
            found = await retention.purgeable(database, uploads_before, now - UNUSED_KEPT_MS)
            if not (found.predictions or found.uploads):
                break
            await self._service.outputs.delete(found.output_names)
            await self._service.uploads.delete(found.uploads)
            await retention.purge(database, found)
            removed += len(found.predictions)
            self._service.metrics.swept("predictions", len(found.predictions))
            self._service.metrics.swept("uploads", len(found.uploads))
            await asyncio.sleep(PAUSE_S)
        if removed:
            logger.info("swept predictions=%d", removed)
        return removed

    async def orphans(self) -> int:
        """Remove old files that no row speaks of; say how many. Raises what the stores do."""
        removed = 0
        for store in (self._service.outputs, self._service.uploads):
            async for page in _pages(store, datetime.now(UTC) - ORPHAN_AGE):
                names = await retention.unreferenced(self._service.database, page, first_of)
                await store.delete(names)
                removed += len(names)
        self._service.metrics.swept("orphans", removed)
        if removed:
            logger.info("swept orphans=%d", removed)
        return removed

    async def _rest(self, seconds: float) -> None:
        """Wait, but not longer than this process stays."""
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        changes = self._service.database.changes
        while not changes.stopped and clock() < until:  # noqa: ASYNC110 - `stop` tells nobody
            await asyncio.sleep(min(1.0, until - clock()))


async def _pages(store: ObjectStore, older_than: datetime) -> AsyncIterator[list[str]]:
    page: list[str] = []
    async for name in store.names(older_than):
        page.append(name)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page
