"""What a key's webhooks are signed with: a secret, and while it is rotated the one that follows it.

The first stands in the header that every receiver reads, until the rotation ends: receivers that know of no rotation go
on verifying. So the column `webhook_secret_before` is the one in use for as long as it is valid, and `webhook_secret`
the next one, or the only one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from hidream.errors import Conflict
from hidream.store import audit_log, keys
from hidream.store.database import Database
from hidream.store.schema import KEYS

OVERLAP_HOURS, OVERLAP_MAX_HOURS = 24, 168
"""How long two secrets sign unless it is said, as long as a webhook is tried; and at most, a week."""

_SECRETS = sa.select(KEYS.c.webhook_secret, KEYS.c.webhook_secret_before, KEYS.c.webhook_secret_until_ms)


@dataclass(frozen=True, slots=True)
class WebhookSecrets:
    """The secret in use; `next`, empty if there is none, signs beside it and replaces it at `until_ms`."""

    secret: str = field(repr=False)
    next: str = field(default="", repr=False)
    until_ms: int = 0


async def get(database: Database, key_id: str, fresh: str) -> WebhookSecrets:
    """Return what a key's webhooks are signed with: what it has, or from now on `fresh`."""
    mine = KEYS.c.id == key_id
    async with database.read() as connection:
        row = (await connection.execute(_SECRETS.where(mine))).one()
    if not row.webhook_secret:
        async with database.write() as connection:
            none = sa.update(KEYS).where(mine, KEYS.c.webhook_secret == "")
            await connection.execute(none.values(webhook_secret=fresh))
            row = (await connection.execute(_SECRETS.where(mine))).one()
    return _secrets(row, database.now_ms())


async def rotate(
    database: Database, key_id: str, fresh: str, overlap_ms: int, *, actor: str = audit_log.SYSTEM
) -> WebhookSecrets:
    """Have `fresh` sign a key's webhooks too, and alone after `overlap_ms`, 0 for at once.

    Raises NotFound if there is no such key, and Conflict while a rotation is under way that this would not end at once:
    receivers may have either secret, and one of them would be lost.
    """
    now = database.now_ms()
    async with database.write(exclusive=True) as connection:
        row = (await connection.execute(_SECRETS.where(KEYS.c.id == key_id))).first()
        if row is None:
            raise keys.unknown_key(key_id)
        known = _secrets(row, now)
        if known.next and overlap_ms:
            raise Conflict(
                "the webhooks' secret is being rotated already; accepted: after that has ended, or was ended by "
                "retiring the secret before, or an overlap of 0, which makes both worthless at once"
            )
        before, until_ms = (known.secret, now + overlap_ms) if known.secret and overlap_ms else ("", 0)
        values = {"webhook_secret": fresh, "webhook_secret_before": before, "webhook_secret_until_ms": until_ms}
        await connection.execute(sa.update(KEYS).where(KEYS.c.id == key_id).values(values))
        overlap_s = overlap_ms // 1000 if before else 0  # a first secret has none to overlap
        await audit_log.record(connection, now, actor, "keys rotate-webhook", key_id, overlap_s=overlap_s)
    return WebhookSecrets(before, fresh, until_ms) if before else WebhookSecrets(fresh)


async def retire(database: Database, key_id: str, *, actor: str = audit_log.SYSTEM) -> bool:
    """End a rotation: only the new secret signs from now on; False if none was under way, or there is no such key."""
    now = database.now_ms()
    two = sa.update(KEYS).where(KEYS.c.id == key_id, KEYS.c.webhook_secret_until_ms > now)
    async with database.write() as connection:
        done = await connection.execute(two.values(webhook_secret_before="", webhook_secret_until_ms=0))
        if done.rowcount:
            await audit_log.record(connection, now, actor, "keys retire-webhook", key_id)
    return done.rowcount > 0


def _secrets(row: Sequence[Any], now: int) -> WebhookSecrets:
    last, before, until_ms = row
    return WebhookSecrets(before, last, until_ms) if before and now < until_ms else WebhookSecrets(last)
