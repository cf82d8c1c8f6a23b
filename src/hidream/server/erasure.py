"""Erasure of a key's data: its tasks, their images, its uploads and its webhooks. Only the fact that it existed stays.

Erasure may be interrupted at any moment and repeated; `server/background/sweep` finishes it, and erases what arrived
late. The tasks that workers are generating are cancelled; a file that a worker has written nevertheless has no row, and
the sweep deletes it as an orphan.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from hidream.outputs.object_store import ObjectStore
from hidream.server.key_cache import TTL_S
from hidream.store import key_data, predictions
from hidream.store.database import Database

KNOWN_S = 2 * TTL_S
"""After this time, every process knows that the key is revoked, and has committed the requests it had accepted."""


async def erase(
    database: Database, outputs: ObjectStore, uploads: ObjectStore, key_id: str, actor: str, known_s: float = KNOWN_S
) -> Counter[str]:
    """Revoke a key and erase its data; return how many predictions and uploads were erased.

    Raises NotFound if there is no such key. After DatabaseUnavailable or ObjectStoreUnavailable, call it again.
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
        await predictions.delete(
            database, [prediction.id for prediction in found.predictions], key_id
        )  # hide them from clients
        await outputs.delete(found.output_names)
        await uploads.delete(found.uploads)
        await key_data.purge(database, found)
        erased.update(predictions=len(found.predictions), uploads=len(found.uploads))
    await key_data.end_erasure(database, key_id, actor, **erased)
    return erased
