"""Webhook secrets: a key's webhooks are signed with one secret, and during a rotation also with the next one.

Until the rotation ends, the header that every receiver reads has the signature of the old secret. So receivers that do
not know about rotation can still verify it. While `webhook_secret_before` is valid, it is the secret in use, and
`webhook_secret` is the next one. Otherwise `webhook_secret` is the only one.
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
"""How long two secrets sign: by default as long as a webhook is retried, and at most a week."""

_SECRETS = sa.select(KEYS.c.webhook_secret, KEYS.c.webhook_secret_before, KEYS.c.webhook_secret_until_ms)


@dataclass(frozen=True, slots=True)
class WebhookSecrets:
    """The secret in use. `next` also signs and replaces it at `until_ms`; it is empty if no rotation is in progress."""

    secret: str = field(repr=False)
    next: str = field(default="", repr=False)
    until_ms: int = 0


async def get(database: Database, key_id: str, new_secret: str) -> WebhookSecrets:
    """Return the webhook secrets of a key; a key without any gets `new_secret`."""
    mine = KEYS.c.id == key_id
    async with database.read() as connection:
        row = (await connection.execute(_SECRETS.where(mine))).one()
    if not row.webhook_secret:
        async with database.write() as connection:
            unset = sa.update(KEYS).where(mine, KEYS.c.webhook_secret == "")
            await connection.execute(unset.values(webhook_secret=new_secret))
            row = (await connection.execute(_SECRETS.where(mine))).one()
    return _secrets(row, database.now_ms())


async def rotate(
    database: Database, key_id: str, new_secret: str, overlap_ms: int, *, actor: str = audit_log.SYSTEM
) -> WebhookSecrets:
    """Sign a key's webhooks also with `new_secret`, and with it alone after `overlap_ms`, which may be 0.

    Raises NotFound if there is no such key. Raises Conflict during a rotation unless `overlap_ms` is 0: receivers may
    have either of its secrets, and one of them would stop working.
    """
    now = database.now_ms()
    async with database.write(exclusive=True) as connection:
        row = (await connection.execute(_SECRETS.where(KEYS.c.id == key_id))).first()
        if row is None:
            raise keys.unknown_key(key_id)
        current = _secrets(row, now)
        if current.next and overlap_ms:
            raise Conflict(
                "the webhook secret is being rotated already; accepted: after that has ended or you have retired the "
                "old secret, or an overlap of 0, which makes both secrets invalid immediately"
            )
        before, until_ms = (current.secret, now + overlap_ms) if current.secret and overlap_ms else ("", 0)
        values = {"webhook_secret": new_secret, "webhook_secret_before": before, "webhook_secret_until_ms": until_ms}
        await connection.execute(sa.update(KEYS).where(KEYS.c.id == key_id).values(values))
        overlap_s = overlap_ms // 1000 if before else 0  # the first secret overlaps with none
        await audit_log.record(connection, now, actor, "keys rotate-webhook", key_id, overlap_s=overlap_s)
    return WebhookSecrets(before, new_secret, until_ms) if before else WebhookSecrets(new_secret)


async def retire(database: Database, key_id: str, *, actor: str = audit_log.SYSTEM) -> bool:
    """End a rotation, so that only the new secret signs; return False if there is no rotation or no such key."""
    now = database.now_ms()
    rotating = sa.update(KEYS).where(KEYS.c.id == key_id, KEYS.c.webhook_secret_until_ms > now)
    async with database.write() as connection:
        done = await connection.execute(rotating.values(webhook_secret_before="", webhook_secret_until_ms=0))
        if done.rowcount:
            await audit_log.record(connection, now, actor, "keys retire-webhook", key_id)
    return done.rowcount > 0


def _secrets(row: Sequence[Any], now: int) -> WebhookSecrets:
    last, before, until_ms = row
    return WebhookSecrets(before, last, until_ms) if before and now < until_ms else WebhookSecrets(last)
