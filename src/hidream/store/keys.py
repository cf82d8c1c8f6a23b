"""API keys: opaque secrets of which only the SHA-256 is kept, so that a stolen database opens nothing.

A secret has 256 bits of its own, which is why a fast hash without salt is enough. It is shown once, by
whoever made it, and is never logged.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from dataclasses import dataclass

import sqlalchemy as sa

from hidream.errors import NotFound
from hidream.store.database import Database
from hidream.store.schema import KEYS

PREFIX = "hd_"


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key: everything but the secret."""

    id: str
    name: str
    created_ms: int
    revoked_ms: int | None


_COLUMNS = (KEYS.c.id, KEYS.c.name, KEYS.c.created_ms, KEYS.c.revoked_ms)


async def create(database: Database, name: str) -> tuple[Key, str]:
    """Make a key; the second part is its secret, which cannot be had again."""
    secret = PREFIX + secrets.token_urlsafe(32)
    key = Key(uuid.uuid4().hex, name, database.now_ms(), None)
    async with database.write() as connection:
        await connection.execute(_insert(key, secret))
    return key, secret


async def register(database: Database, name: str, secret: str) -> None:
    """See that `secret`, chosen by the operator, is a key; one that was revoked stays so."""
    key = Key(uuid.uuid4().hex, name, database.now_ms(), None)
    async with database.write() as connection:
        known = await connection.execute(sa.select(KEYS.c.id).where(KEYS.c.hash == _hash(secret)))
        if known.first() is None:
            await connection.execute(_insert(key, secret))


async def find(database: Database, secret: str) -> Key | None:
    """Look up the key of a secret, unless it is unknown or revoked."""
    wanted = sa.select(*_COLUMNS).where(KEYS.c.hash == _hash(secret), KEYS.c.revoked_ms.is_(None))
    async with database.read() as connection:
        row = (await connection.execute(wanted)).first()
    return Key(*row) if row else None


async def listed(database: Database) -> list[Key]:
    """List all keys, revoked ones included, oldest first."""
    async with database.read() as connection:
        rows = await connection.execute(sa.select(*_COLUMNS).order_by(KEYS.c.created_ms, KEYS.c.id))
    return [Key(*row) for row in rows]


async def revoke(database: Database, key_id: str) -> None:
    """Make a key worthless from now on; raises NotFound if there is no such key."""
    statement = (
        sa.update(KEYS)
        .where(KEYS.c.id == key_id)
        .values(revoked_ms=sa.func.coalesce(KEYS.c.revoked_ms, database.now_ms()))
    )
    async with database.write() as connection:
        if (await connection.execute(statement)).rowcount == 0:
            raise NotFound(f"there is no key {key_id!r}; `hidream keys list` shows those that there are")


def _insert(key: Key, secret: str) -> sa.Insert:
    return sa.insert(KEYS).values(
        id=key.id, name=key.name, hash=_hash(secret), created_ms=key.created_ms, revoked_ms=key.revoked_ms
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
