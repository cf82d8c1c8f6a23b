"""API keys: opaque secrets of which only a hash is kept, so that a stolen database opens nothing.

A secret has 256 bits of its own, which is why a fast hash without salt is enough. A *pepper*, which is not in the
database, makes that true also of secrets that an operator has chosen. A secret is shown once, by whoever made it, and
is never logged.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from hidream.errors import NotFound
from hidream.store.database import Database
from hidream.store.schema import KEYS

PREFIX = "hd_"


class Scope(StrEnum):
    """What a key may do: submit tasks, read and delete its own, or all that and what concerns all keys."""

    SUBMIT = "submit"
    READ = "read"
    ADMIN = "admin"


USUAL = frozenset((Scope.SUBMIT, Scope.READ))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use; 0 is no limit."""

    requests_per_minute: int = 0
    tasks_max: int = 0
    pixels_per_day: int = 0


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key: everything but the secret."""

    id: str
    name: str
    created_ms: int
    revoked_ms: int | None
    scopes: frozenset[Scope] = USUAL
    limits: Limits = Limits()

    def may(self, scope: Scope) -> bool:
        """Whether the key has a scope, or the one that contains all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


_COLUMNS = (
    KEYS.c.id,
    KEYS.c.name,
    KEYS.c.created_ms,
    KEYS.c.revoked_ms,
    KEYS.c.scopes,
    KEYS.c.requests_per_minute,
    KEYS.c.tasks_max,
    KEYS.c.pixels_per_day,
)


async def create(
    database: Database,
    name: str,
    scopes: Iterable[Scope] = USUAL,
    limits: Limits = Limits(),
    *,
    pepper: str = "",
) -> tuple[Key, str]:
    """Make a key; the second part is its secret, which cannot be had again."""
    secret = PREFIX + secrets.token_urlsafe(32)
    key = Key(uuid.uuid4().hex, name, database.now_ms(), None, frozenset(scopes), limits)
    async with database.write() as connection:
        await connection.execute(_insert(key, _hash(secret, pepper)))
    return key, secret


async def register(database: Database, name: str, secret: str, *, pepper: str = "") -> None:
    """See that `secret`, chosen by the operator, is a key that may do everything; one that was revoked stays so."""
    key = Key(uuid.uuid4().hex, name, database.now_ms(), None, frozenset((Scope.ADMIN,)))
    digest = _hash(secret, pepper)
    async with database.write(alone=True) as connection:
        known = await connection.execute(sa.select(KEYS.c.id).where(KEYS.c.hash == digest))
        if known.first() is None:
            await connection.execute(_insert(key, digest))


async def find(database: Database, secret: str, *, pepper: str = "") -> Key | None:
    """Look up the key of a secret, unless it is unknown or revoked."""
    wanted = sa.select(*_COLUMNS).where(KEYS.c.hash == _hash(secret, pepper), KEYS.c.revoked_ms.is_(None))
    async with database.read() as connection:
        row = (await connection.execute(wanted)).first()
    return _key(row) if row else None


async def listed(database: Database) -> list[Key]:
    """List all keys, revoked ones included, oldest first."""
    async with database.read() as connection:
        rows = await connection.execute(sa.select(*_COLUMNS).order_by(KEYS.c.created_ms, KEYS.c.id))
    return [_key(row) for row in rows]


async def revoke(database: Database, key_id: str) -> None:
    """Make a key worthless from now on; raises NotFound if there is no such key."""
    await _change(database, key_id, revoked_ms=sa.func.coalesce(KEYS.c.revoked_ms, database.now_ms()))


async def rotate(database: Database, key_id: str, *, pepper: str = "") -> str:
    """Give a key a new secret, and return it; the old one is worthless. Raises NotFound if there is no such key."""
    secret = PREFIX + secrets.token_urlsafe(32)
    await _change(database, key_id, hash=_hash(secret, pepper))
    return secret


async def webhook_secret(database: Database, key_id: str, fresh: str) -> str:
    """Return what a key's webhooks are signed with: what it has, or from now on `fresh`."""
    mine = KEYS.c.id == key_id
    async with database.read() as connection:
        known = (await connection.execute(sa.select(KEYS.c.webhook_secret).where(mine))).scalar_one()
    if known:
        return str(known)
    async with database.write() as connection:
        await connection.execute(sa.update(KEYS).where(mine, KEYS.c.webhook_secret == "").values(webhook_secret=fresh))
        return str((await connection.execute(sa.select(KEYS.c.webhook_secret).where(mine))).scalar_one())


async def _change(database: Database, key_id: str, **values: object) -> None:
    async with database.write() as connection:
        if (await connection.execute(sa.update(KEYS).where(KEYS.c.id == key_id).values(**values))).rowcount == 0:
            raise NotFound(f"there is no key {key_id!r}; `hidream keys list` shows those that there are")


def _insert(key: Key, digest: str) -> sa.Insert:
    return sa.insert(KEYS).values(
        id=key.id,
        name=key.name,
        hash=digest,
        created_ms=key.created_ms,
        revoked_ms=key.revoked_ms,
        scopes=",".join(sorted(key.scopes)),
        requests_per_minute=key.limits.requests_per_minute,
        tasks_max=key.limits.tasks_max,
        pixels_per_day=key.limits.pixels_per_day,
    )


def _key(row: Sequence[Any]) -> Key:
    id_, name, created_ms, revoked_ms, scopes, *limits = row
    return Key(id_, name, created_ms, revoked_ms, frozenset(map(Scope, scopes.split(","))), Limits(*limits))


def _hash(secret: str, pepper: str) -> str:
    data = secret.encode("utf-8", "surrogatepass")
    return hmac.digest(pepper.encode(), data, "sha256").hex() if pepper else hashlib.sha256(data).hexdigest()
