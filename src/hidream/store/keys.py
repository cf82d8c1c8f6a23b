"""API keys: opaque secrets of which only a hash is stored, so that a stolen database gives no access.

A secret has 256 random bits, so a fast hash without salt is enough. A *pepper*, which is not in the database, protects
secrets that an operator has chosen as well. A secret is shown once, when it is created, and is never logged.

With another pepper no key would be found. So each row has a check value for the pepper of its key. No process starts or
creates a key while the pepper differs from that of a valid key. A row of an older release has no check value until its
key is used or registered again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import secrets
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.errors import ConfigurationError, DatabaseUnavailable, InvalidInput, NotFound
from hidream.store import audit_log
from hidream.store.database import Database
from hidream.store.schema import IDEMPOTENCY_RECORDS, KEYS, PREDICTIONS, UPLOADS
from hidream.types import PRIORITY_MAX

PREFIX = "hd_"
_CHECKED = "\0which pepper"
"""The text that is hashed for the check value; no request can send it as a key."""


class Scope(StrEnum):
    """What a key may do: submit tasks, view its own tasks, also delete them, or all of this and manage all keys."""

    SUBMIT = "submit"
    VIEW = "view"
    READ = "read"
    ADMIN = "admin"


DEFAULT_SCOPES = frozenset((Scope.SUBMIT, Scope.READ))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use; 0 is no limit.

    `steps_max`, `pixels_max` (of one image) and `images_max` apply to one task. `work_per_day` is in pixel steps.
    `bytes_max` is the total size of the key's stored uploads and image files.
    """

    requests_per_minute: int = 0
    tasks_max: int = 0
    pixels_per_day: int = 0
    steps_max: int = 0
    pixels_max: int = 0
    images_max: int = 0
    work_per_day: int = 0
    bytes_max: int = 0


@dataclass(frozen=True, slots=True)
class Key:
    """An API key without its secret. Tasks of a higher `priority` go earlier (`admission`)."""

    id: str
    name: str
    created_ms: int
    revoked_ms: int | None
    scopes: frozenset[Scope] = DEFAULT_SCOPES
    limits: Limits = Limits()
    priority: int = 0

    def may(self, scope: Scope) -> bool:
        """Whether the key has a scope, or one that includes it."""
        wider = {Scope.VIEW: (Scope.READ, Scope.ADMIN)}.get(scope, (Scope.ADMIN,))
        return scope in self.scopes or any(each in self.scopes for each in wider)


_COLUMNS = (
    KEYS.c.id,
    KEYS.c.name,
    KEYS.c.created_ms,
    KEYS.c.revoked_ms,
    KEYS.c.scopes,
    KEYS.c.priority,
    *(KEYS.c[name] for name in Limits.__slots__),
)


async def create(
    database: Database,
    name: str,
    scopes: Iterable[Scope] = DEFAULT_SCOPES,
    limits: Limits = Limits(),
    priority: int = 0,
    *,
    pepper: str = "",
    actor: str = audit_log.SYSTEM,
) -> tuple[Key, str]:
    """Create a key, and return it with its secret, which cannot be read again. `actor` is for the audit log.

    Raises InvalidInput on a priority out of range, and ConfigurationError as `check_pepper` does.
    """
    _check_priority(priority)
    secret = PREFIX + secrets.token_urlsafe(32)
    key = Key(uuid.uuid4().hex, name, database.now_ms(), None, frozenset(scopes), limits, priority)
    async with database.write(exclusive=True) as connection:
        await _require_pepper(connection, pepper)
        await _add(connection, key, secret, pepper, actor, "keys create")
    return key, secret


async def register(
    database: Database, name: str, secret: str, *, pepper: str = "", actor: str = audit_log.SYSTEM
) -> None:
    """Make `secret`, chosen by the operator, a key with the scope admin. A revoked key stays revoked.

    Raises ConfigurationError as `check_pepper` does.
    """
    key = Key(uuid.uuid4().hex, name, database.now_ms(), None, frozenset((Scope.ADMIN,)))
    async with database.write(exclusive=True) as connection:
        await _require_pepper(connection, pepper)
        if (await connection.execute(_record_pepper(digest_of(secret, pepper), pepper))).rowcount == 0:
            await _add(connection, key, secret, pepper, actor, "keys register")


async def check_pepper(database: Database, pepper: str) -> None:
    """Check that `pepper` matches all valid keys that have a check value. Raises ConfigurationError."""
    async with database.read() as connection:
        await _require_pepper(connection, pepper)


async def find(database: Database, secret: str, *, pepper: str = "") -> Key | None:
    """Return the key of a secret; None if it is unknown or revoked."""
    digest = digest_of(secret, pepper)
    wanted = sa.select(*_COLUMNS, KEYS.c.pepper_check).where(KEYS.c.hash == digest, KEYS.c.revoked_ms.is_(None))
    async with database.read() as connection:
        row = (await connection.execute(wanted)).first()
    if row is None:
        return None
    if row.pepper_check is None:
        with contextlib.suppress(DatabaseUnavailable):  # then the next use records it
            async with database.write(quiet=True) as connection:
                await connection.execute(_record_pepper(digest, pepper))
    return _key(row[:-1])


async def list_keys(database: Database) -> list[Key]:
    """List all keys, including revoked ones, oldest first."""
    async with database.read() as connection:
        rows = await connection.execute(sa.select(*_COLUMNS).order_by(KEYS.c.created_ms, KEYS.c.id))
    return [_key(row) for row in rows]


async def set_limits(
    database: Database,
    key_id: str,
    limits: Mapping[str, int],
    *,
    priority: int | None = None,
    actor: str = audit_log.SYSTEM,
) -> None:
    """Change limits of a key, whose names are those of Limits, and its priority unless it is None.

    Tasks that were accepted before keep their priority. Raises InvalidInput on a priority out of range, and NotFound if
    there is no such key.
    """
    assert set(limits) <= set(Limits.__slots__), f"{sorted(limits)} are not all limits"
    changed = dict(limits)
    if priority is not None:
        _check_priority(priority)
        changed["priority"] = priority
    async with database.write() as connection:
        await _change(connection, key_id, **changed)
        await audit_log.record(connection, database.now_ms(), actor, "keys limit", key_id, **changed)


async def valid_digests(database: Database, digests: Collection[str]) -> set[str]:
    """Return those of these digests that belong to a valid key: neither revoked nor rotated."""
    wanted = sa.select(KEYS.c.hash).where(KEYS.c.hash.in_(digests), KEYS.c.revoked_ms.is_(None))
    async with database.read() as connection:
        return set((await connection.execute(wanted)).scalars())


async def revoke(database: Database, key_id: str, *, actor: str = audit_log.SYSTEM) -> None:
    """Revoke a key. Raises NotFound if there is no such key."""
    now = database.now_ms()
    async with database.write() as connection:
        await _change(connection, key_id, revoked_ms=sa.func.coalesce(KEYS.c.revoked_ms, now))
        await audit_log.record(connection, now, actor, "keys revoke", key_id)


async def delete_unused(database: Database, key_id: str) -> bool:
    """Delete a key unless stored data belong to it; return whether it was deleted."""
    used = [sa.exists().where(table.c.key_id == key_id) for table in (PREDICTIONS, IDEMPOTENCY_RECORDS, UPLOADS)]
    unused = sa.delete(KEYS).where(KEYS.c.id == key_id, ~sa.or_(*used))
    async with database.write() as connection:
        deleted = (await connection.execute(unused)).rowcount > 0
        if deleted:
            await audit_log.record(connection, database.now_ms(), audit_log.SYSTEM, "keys take back", key_id)
        return deleted


async def rotate(database: Database, key_id: str, *, pepper: str = "", actor: str = audit_log.SYSTEM) -> str:
    """Give a key a new secret, and return it; the old one becomes invalid.

    Raises NotFound if there is no such key, and ConfigurationError as `check_pepper` does.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    async with database.write(exclusive=True) as connection:
        await _require_pepper(connection, pepper)
        await _change(connection, key_id, **_hashes(secret, pepper))
        await audit_log.record(connection, database.now_ms(), actor, "keys rotate", key_id)
    return secret


async def _add(connection: AsyncConnection, key: Key, secret: str, pepper: str, actor: str, act: str) -> None:
    """Insert a key, and record it in the audit log without its name, which may be a person's."""
    await connection.execute(_insert(key, secret, pepper))
    details: dict[str, Any] = {"scopes": sorted(key.scopes)}
    details["limits"] = {name: most for name, most in dataclasses.asdict(key.limits).items() if most}
    if key.priority:
        details["priority"] = key.priority
    await audit_log.record(connection, key.created_ms, actor, act, key.id, **details)


def _check_priority(priority: int) -> None:
    if abs(priority) > PRIORITY_MAX:
        raise InvalidInput(f"priority is {priority}; accepted: a whole number from {-PRIORITY_MAX} to {PRIORITY_MAX}")


def unknown_key(key_id: str) -> NotFound:
    """Return the error for a key id that is unknown."""
    return NotFound(f"there is no key {key_id!r}; `hidream keys list` shows the keys")


async def _change(connection: AsyncConnection, key_id: str, **values: object) -> None:
    if (await connection.execute(sa.update(KEYS).where(KEYS.c.id == key_id).values(**values))).rowcount == 0:
        raise unknown_key(key_id)


async def _require_pepper(connection: AsyncConnection, pepper: str) -> None:
    """Raise ConfigurationError if a valid key has another pepper; rows without a check value are ignored."""
    check = KEYS.c.pepper_check
    mine = digest_of(_CHECKED, pepper)
    others_query = sa.select(check).where(KEYS.c.revoked_ms.is_(None), check.is_not(None), check != mine)
    others = (await connection.execute(others_query)).scalars().all()
    if not others:
        return
    peppered = digest_of(_CHECKED, "") not in others
    if not pepper:
        problem = "is not set, but there are valid API keys that were made with a pepper"
    elif peppered:
        problem = "is not the pepper that valid API keys were made with"
    else:
        problem = "is set, but there are valid API keys that were made without a pepper"
    raise ConfigurationError(
        f"[store] key_pepper (HIDREAM_STORE_KEY_PEPPER) {problem}, and none of them ({len(others)}) would be known; "
        f"accepted: {'that pepper' if peppered else 'none'}, or another one after each of these keys was revoked "
        "(`hidream keys list`, `hidream keys revoke ID`)"
    )


def _record_pepper(digest: str, pepper: str) -> sa.Update:
    """Set the check value of a key's pepper, which rows of an older release lack."""
    return sa.update(KEYS).where(KEYS.c.hash == digest).values(pepper_check=digest_of(_CHECKED, pepper))


def _insert(key: Key, secret: str, pepper: str) -> sa.Insert:
    return sa.insert(KEYS).values(
        id=key.id,
        name=key.name,
        **_hashes(secret, pepper),
        created_ms=key.created_ms,
        revoked_ms=key.revoked_ms,
        scopes=",".join(sorted(key.scopes)),
        priority=key.priority,
        **dataclasses.asdict(key.limits),
    )


def _key(row: Sequence[Any]) -> Key:
    id_, name, created_ms, revoked_ms, scopes, priority, *limits = row
    return Key(id_, name, created_ms, revoked_ms, frozenset(map(Scope, scopes.split(","))), Limits(*limits), priority)


def _hashes(secret: str, pepper: str) -> dict[str, str]:
    """Return the columns that depend on the pepper."""
    return {"hash": digest_of(secret, pepper), "pepper_check": digest_of(_CHECKED, pepper)}


def digest_of(secret: str, pepper: str) -> str:
    """Hash a secret as it is stored in the table."""
    data = secret.encode("utf-8", "surrogatepass")
    return hmac.digest(pepper.encode(), data, "sha256").hex() if pepper else hashlib.sha256(data).hexdigest()
