"""Deletes the files of deleted predictions at once, before the client gets its response.

The rows are marked as deleted already, so a sweep deletes the files that could not be deleted here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from hidream.errors import ObjectStoreUnavailable
from hidream.outputs.object_store import ObjectStore
from hidream.store.prediction import Prediction

WITHIN_S = 5.0
"""How long a client waits for a slow object store."""

logger = logging.getLogger(__name__)


async def remove_files(outputs: ObjectStore, deleted: Sequence[Prediction]) -> None:
    """Delete the files of predictions; if the object store is unavailable or slow, a sweep does it later."""
    names = [name for prediction in deleted if prediction.output_name for name in prediction.output_names]
    if not names:
        return
    try:
        async with asyncio.timeout(WITHIN_S):
            await outputs.delete(names)
    except (ObjectStoreUnavailable, TimeoutError) as error:
        logger.warning("file_removal_failed count=%d error=%s", len(names), error or "time-out")
