"""The sweep: it purges expired and deleted predictions, expired uploads, and orphaned files.

Files are deleted before their rows, so that a crash in between leaves no file without a row. Orphans are files without
a row; a worker leaves one when its task is deleted while it generates the image. Any number of processes may sweep at
once, because every step is idempotent.
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
from hidream.store.schema import DAY_MS

EVERY_S = 600.0
"""The pause between two sweeps: what a client deletes is purged within a quarter of an hour."""
ORPHANS_EVERY_S = 24 * 3600.0
"""Listing a whole bucket costs money, and orphans are rare."""
ORPHAN_AGE = timedelta(days=1)
"""The least age of an orphan. A row is written before its file, so an older file without a row never gets one."""
UPLOAD_KEPT_MS = DAY_MS
"""How long an upload that a task has used is kept at least."""
UNUSED_KEPT_MS = 3600 * 1000
"""How long an upload that no task has used is kept: its task follows soon, or never."""
PAGE = 5000
"""File names in one query for orphans: each query scans the names, and SQLite allows 32,766 parameters."""
PAUSE_S = 0.05
"""The pause between two transactions, so that submissions come first."""

logger = logging.getLogger(__name__)


class Sweep:
    """The sweeps of one process."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def run(self) -> None:
        """Sweep at intervals until this process stops."""
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
        """Purge all that is expired or deleted; return how many predictions. Raises what the stores raise."""
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
        """Delete old files without a row; return how many. Raises what the stores raise."""
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
        """Wait, but return soon if this process stops."""
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        changes = self._service.database.changes
        while not changes.stopped and clock() < until:  # noqa: ASYNC110 - `stop` sets no event
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
