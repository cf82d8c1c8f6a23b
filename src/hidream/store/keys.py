"""API keys: opaque secrets of which only a hash is kept, so that a stolen database opens nothing.

A secret has 256 bits of its own, which is why a fast hash without salt is enough. A *pepper*, which is not in the
database, makes that true also of secrets that an operator has chosen. A secret is shown once, by whoever made it, and
is never logged.

With another pepper no key is known. So each row says by a check value which pepper its key was made with, and nobody
starts, or makes a key, with a pepper that is not the one of every valid key. A row of an older release does not say it
before its key is used, or registered again.
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

from hidream.errors import ConfigurationError, DatabaseUnavailable, NotFound
from hidream.store import audit_log
from hidream.store.database import Database
from hidream.store.schema import IDEMPOTENCY_RECORDS, KEYS, PREDICTIONS, UPLOADS

PREFIX = "hd_"
_CHECKED = "\0which pepper"
"""What is hashed for the check value; no request can carry it as a key."""


class Scope(StrEnum):
    """What a key may do: submit tasks, look at its own, also delete those, or all that and what concerns all keys."""

    SUBMIT = "submit"
    VIEW = "view"
    READ = "read"
    ADMIN = "admin"


DEFAULT_SCOPES = frozenset((Scope.SUBMIT, Scope.READ))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use; 0 is no limit.

    `steps_max`, `pixels_max` (of one image) and `images_max` are of one task, `work_per_day` counts pixel steps, and
    `bytes_max` what of the key is kept: its uploads and its images' files.
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
    """What is known of a key: everything but the secret."""

    id: str
    name: str
    created_ms: int
    revoked_ms: int | None
    scopes: frozenset[Scope] = DEFAULT_SCOPES
    limits: Limits = Limits()

    def may(self, scope: Scope) -> bool:
        """Whether the key has a scope, or one that contains it."""
        contains = {Scope.VIEW: (Scope.READ, Scope.ADMIN)}.get(scope, (Scope.ADMIN,))
        return scope in self.scopes or any(wider in self.scopes for wider in contains)


_COLUMNS = (
    KEYS.c.id,
    KEYS.c.name,
    KEYS.c.created_ms,
    KEYS.c.revoked_ms,
    KEYS.c.scopes,
    *(KEYS.c[name] for name in Limits.__slots__),
)


async def create(
    database: Database,
    name: str,
    scopes: Iterable[Scope] = DEFAULT_SCOPES,
    limits: Limits = Limits(),
    *,
    pepper: str = "",
    actor: str = audit_log.SYSTEM,
) -> tuple[Key, str]:
    """Make a key; the second part is its secret, which cannot be had again. `actor` is for the audit log.

    Raises ConfigurationError as `check_pepper` does.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    key = Key(uuid.uuid4().hex, name, database.now_ms(), None, frozenset(scopes), limits)
    async with database.write(exclusive=True) as connection:
        await _refuse_another(connection, pepper)
        await _add(connection, key, secret, pepper, actor, "keys create")
    return key, secret


async def register(
    database: Database, name: str, secret: str, *, pepper: str = "", actor: str = audit_log.SYSTEM
) -> None:
    """See that `secret`, chosen by the operator, is a key that may do everything; one that was revoked stays so.

    Raises ConfigurationError as `check_pepper` does.
    """
    key = Key(uuid.uuid4().hex, name, database.now_ms(), None, frozenset((Scope.ADMIN,)))
    async with database.write(exclusive=True) as connection:
        await _refuse_another(connection, pepper)
        if (await connection.execute(_say_pepper(digest_of(secret, pepper), pepper))).rowcount == 0:
            await _add(connection, key, secret, pepper, actor, "keys register")


async def check_pepper(database: Database, pepper: str) -> None:
    """See that `pepper` is not known to be another one than a valid key's. Raises ConfigurationError."""
    async with database.read() as connection:
        await _refuse_another(connection, pepper)


async def find(database: Database, secret: str, *, pepper: str = "") -> Key | None:
    """Look up the key of a secret, unless it is unknown or revoked."""
    digest = digest_of(secret, pepper)
    wanted = sa.select(*_COLUMNS, KEYS.c.pepper_check).where(KEYS.c.hash == digest, KEYS.c.revoked_ms.is_(None))
    async with database.read() as connection:
        row = (await connection.execute(wanted)).first()
    if row is None:
        return None
    if row.pepper_check is None:
        with contextlib.suppress(DatabaseUnavailable):  # then it is said at the next use
            async with database.write(quiet=True) as connection:
                await connection.execute(_say_pepper(digest, pepper))
    return _key(row[:-1])


async def list_keys(database: Database) -> list[Key]:
    """List all keys, revoked ones included, oldest first."""
    async with database.read() as connection:
        rows = await connection.execute(sa.select(*_COLUMNS).order_by(KEYS.c.created_ms, KEYS.c.id))
    return [_key(row) for row in rows]


async def set_limits(
    database: Database, key_id: str, limits: Mapping[str, int], *, actor: str = audit_log.SYSTEM
) -> None:
    """Change some limits of a key, by their names in Limits; raises NotFound if there is no such key."""
    assert set(limits) <= set(Limits.__slots__), f"{sorted(limits)} are not all limits"
    async with database.write() as connection:
        await _change(connection, key_id, **limits)
        await audit_log.record(connection, database.now_ms(), actor, "keys limit", key_id, **limits)


async def valid_digests(database: Database, digests: Collection[str]) -> set[str]:
    """Say which of these digests are still a valid key's: a key that was revoked has none, a rotated one another."""
    wanted = sa.select(KEYS.c.hash).where(KEYS.c.hash.in_(digests), KEYS.c.revoked_ms.is_(None))
    async with database.read() as connection:
        return set((await connection.execute(wanted)).scalars())


async def revoke(database: Database, key_id: str, *, actor: str = audit_log.SYSTEM) -> None:
    """Make a key worthless from now on; raises NotFound if there is no such key."""
    now = database.now_ms()
    async with database.write() as connection:
        await _change(connection, key_id, revoked_ms=sa.func.coalesce(KEYS.c.revoked_ms, now))
        await audit_log.record(connection, now, actor, "keys revoke", key_id)


async def delete_unused(database: Database, key_id: str) -> bool:
    """Forget a key that was never used for anything that is kept; False if it was."""
    used = [sa.exists().where(table.c.key_id == key_id) for table in (PREDICTIONS, IDEMPOTENCY_RECORDS, UPLOADS)]
    unused = sa.delete(KEYS).where(KEYS.c.id == key_id, ~sa.or_(*used))
    async with database.write() as connection:
        taken = (await connection.execute(unused)).rowcount > 0
        if taken:
            await audit_log.record(connection, database.now_ms(), audit_log.SYSTEM, "keys take back", key_id)
        return taken


async def rotate(database: Database, key_id: str, *, pepper: str = "", actor: str = audit_log.SYSTEM) -> str:
    """Give a key a new secret, and return it; the old one is worthless.

    Raises NotFound if there is no such key, and ConfigurationError as `check_pepper` does.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    async with database.write(exclusive=True) as connection:
        await _refuse_another(connection, pepper)
        await _change(connection, key_id, **_hashes(secret, pepper))
        await audit_log.record(connection, database.now_ms(), actor, "keys rotate", key_id)
    return secret


async def _add(connection: AsyncConnection, key: Key, secret: str, pepper: str, actor: str, act: str) -> None:
    """Write a key down, and that it was made; not its name, which may be a person's."""
    await connection.execute(_insert(key, secret, pepper))
    limits = {name: most for name, most in dataclasses.asdict(key.limits).items() if most}
    await audit_log.record(connection, key.created_ms, actor, act, key.id, scopes=sorted(key.scopes), limits=limits)


def unknown_key(key_id: str) -> NotFound:
    """Say that there is no such key."""
    return NotFound(f"there is no key {key_id!r}; `hidream keys list` shows those that there are")


async def _change(connection: AsyncConnection, key_id: str, **values: object) -> None:
    if (await connection.execute(sa.update(KEYS).where(KEYS.c.id == key_id).values(**values))).rowcount == 0:
        raise unknown_key(key_id)


async def _refuse_another(connection: AsyncConnection, pepper: str) -> None:
    """Raise ConfigurationError if a valid key was made with another pepper; rows that do not say so are passed over."""
    check = KEYS.c.pepper_check
    mine = digest_of(_CHECKED, pepper)
    wanted = sa.select(check).where(KEYS.c.revoked_ms.is_(None), check.is_not(None), check != mine)
    others = (await connection.execute(wanted)).scalars().all()
    if not others:
        return
    peppered = digest_of(_CHECKED, "") not in others
    if not pepper:
        what = "is not set, but there are valid API keys that were made with a pepper"
    elif peppered:
        what = "is not the pepper that valid API keys were made with"
    else:
        what = "is set, but there are valid API keys that were made without a pepper"
    raise ConfigurationError(
        f"[store] key_pepper (HIDREAM_STORE_KEY_PEPPER) {what}, and none of them ({len(others)}) would be known; "
        f"accepted: {'that pepper' if peppered else 'none'}, or another one after each of these keys was revoked "
        "(`hidream keys list`, `hidream keys revoke ID`)"
    )


def _say_pepper(digest: str, pepper: str) -> sa.Update:
    """Write down by which pepper a key was found, which the row of an older release does not say."""
    return sa.update(KEYS).where(KEYS.c.hash == digest).values(pepper_check=digest_of(_CHECKED, pepper))


def _insert(key: Key, secret: str, pepper: str) -> sa.Insert:
    return sa.insert(KEYS).values(
        id=key.id,
        name=key.name,
        **_hashes(secret, pepper),
        created_ms=key.created_ms,
        revoked_ms=key.revoked_ms,
        scopes=",".join(sorted(key.scopes)),
        **dataclasses.asdict(key.limits),
    )


def _key(row: Sequence[Any]) -> Key:
    id_, name, created_ms, revoked_ms, scopes, *limits = row
    return Key(id_, name, created_ms, revoked_ms, frozenset(map(Scope, scopes.split(","))), Limits(*limits))


def _hashes(secret: str, pepper: str) -> dict[str, str]:
    """Give the columns that depend on the pepper."""
    return {"hash": digest_of(secret, pepper), "pepper_check": digest_of(_CHECKED, pepper)}


def digest_of(secret: str, pepper: str) -> str:
    """Hash a secret as the table has it."""
    data = secret.encode("utf-8", "surrogatepass")
    return hmac.digest(pepper.encode(), data, "sha256").hex() if pepper else hashlib.sha256(data).hexdigest()
