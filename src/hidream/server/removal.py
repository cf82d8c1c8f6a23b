"""Files of predictions that were deleted go at once, before their deletion is answered.

The rows say already that they are deleted, so a sweep removes what could not be removed here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from hidream.errors import ObjectStoreUnavailable
from hidream.outputs.object_store import ObjectStore
from hidream.store.prediction import Prediction

WITHIN_S = 5.0
"""How long a client waits for a place that is slow."""

logger = logging.getLogger(__name__)


async def remove_files(outputs: ObjectStore, deleted: Sequence[Prediction]) -> None:
    """Remove the files of predictions; of a place that is away or slow, a sweep does it later."""
    names = [name for prediction in deleted if prediction.output_name for name in prediction.output_names]
    if not names:
        return
    try:
        async with asyncio.timeout(WITHIN_S):
            await outputs.delete(names)
    except (ObjectStoreUnavailable, TimeoutError) as error:
        logger.warning("file_removal_failed count=%d error=%s", len(names), error or "time-out")
