"""Erasing all that is kept of a key: its tasks, their images, its uploads and webhooks; only that it was there stays.

It may be stopped at any moment and begun again; what broke off, or came in late, `server/background/sweep` erases.
A worker that generates a task meanwhile hears that it was cancelled; what it has written is a file without a row, which
the sweep removes too.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from hidream.outputs.object_store import ObjectStore
from hidream.server.key_cache import TTL_S
from hidream.store import key_data, predictions
from hidream.store.database import Database

KNOWN_S = 2 * TTL_S
"""By then all servers know that the key is revoked, and what they had just let in is in the database."""


async def erase(
    database: Database, outputs: ObjectStore, uploads: ObjectStore, key_id: str, actor: str, known_s: float = KNOWN_S
) -> Counter[str]:
    """Revoke a key and erase what is kept of it; say how much that was.

    Raises NotFound if there is no such key, DatabaseUnavailable and ObjectStoreUnavailable: then begin it again.
    """
    erased: Counter[str] = Counter(predictions=0, uploads=0)
    await key_data.begin_erasure(database, key_id, actor)
    await asyncio.sleep(known_s)
    while ids := await key_data.unfinished(database, key_id):
        for id_ in ids:
            await predictions.cancel(database, id_, key_id)
    while True:
        found = await key_data.purgeable(database, key_id)
        if not (found.predictions or found.uploads):
            break
        await predictions.delete(database, [prediction.id for prediction in found.predictions], key_id)  # hides them
        await outputs.delete(found.output_names)
        await uploads.delete(found.uploads)
        await key_data.purge(database, found)
        erased.update(predictions=len(found.predictions), uploads=len(found.uploads))
    await key_data.end_erasure(database, key_id, actor, **erased)
    return erased
