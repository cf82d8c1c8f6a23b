"""Uploads: metadata of the files that clients sent; the bytes are in the object store.

An upload counts towards the limits of its key from the moment it is announced: as a request in its minute, and with its
bytes for as long as it exists.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.errors import InvalidInput, TooMany
from hidream.store.database import Database
from hidream.store.keys import Key, Limits
from hidream.store.schema import KEYS, MINUTE_MS
from hidream.store.schema import PREDICTIONS as P
from hidream.store.schema import UPLOADS as U
from hidream.types import Status

BYTES_RETRY_S = 600
"""When a key over its limit may try again: the interval between two sweeps."""
NO_LIMITS = Limits()
INLINE = ""
"""The filename of a file that was part of a submission: the submission counts as a request, the file does not."""
WITHDRAWN = ""
"""The media type of a file that is being removed: no task can use it, and nothing can be stored under its name."""
FILLING = "filling/"
"""The prefix of an announced file's media type while one request stores the bytes. It is followed by the time at which
the claim expires, in ms, and a random text that identifies the request."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One row. `name` is the unguessable name of the object; `stored` is false while it is only announced."""

    name: str
    key_id: str
    filename: str
    media_type: str
    size: int
    created_ms: int
    stored: bool


_COLUMNS = tuple(U.c[name] for name in Upload.__slots__)
_KEY_IS_VALID = sa.exists().where(KEYS.c.id == U.c.key_id, KEYS.c.revoked_ms.is_(None))


async def check(database: Database, key: Key, *, within_request: bool = False) -> None:
    """Check that a key may upload something now; `create` checks the size. Raises TooMany."""
    if key.limits.requests_per_minute or key.limits.bytes_max:
        await prepare_sums(database, key.id, key.limits)
        async with database.read() as connection:
            await _check(database, connection, key.id, key.limits, 1, within_request)


async def create(
    database: Database, upload: Upload, limits: Limits = NO_LIMITS, *, within_request: bool = False
) -> None:
    """Insert an upload, before or after its bytes are stored. Raises TooMany, and then inserts nothing."""
    limited = bool(limits.requests_per_minute or limits.bytes_max)
    await prepare_sums(database, upload.key_id, limits)
    async with database.write(exclusive=limited, quiet=True) as connection:
        await _check(database, connection, upload.key_id, limits, upload.size, within_request)
        await connection.execute(sa.insert(U).values({name: getattr(upload, name) for name in Upload.__slots__}))
        database.cached_sums.add(upload.key_id, upload.size)


async def claim(database: Database, name: str, for_s: float) -> str | None:
    """Let one request of all processes store an announced file's bytes, for `for_s` seconds; return its claim.

    None if another request has a claim, the file is stored or being removed, or its key was revoked. `mark_stored` and
    `release` take the claim.
    """
    now = database.now_ms()
    claim = f"{_filling_until(now + round(for_s * 1000))}/{secrets.token_hex(16)}"
    free = sa.or_(U.c.media_type.not_like(f"{FILLING}%"), U.c.media_type < _filling_until(now))
    mine = (U.c.name == name, U.c.stored.is_(False), U.c.media_type != WITHDRAWN, free, _KEY_IS_VALID)
    async with database.write(quiet=True) as connection:
        changed = await connection.execute(sa.update(U).where(*mine).values(media_type=claim))
    return claim if changed.rowcount == 1 else None


async def release(database: Database, name: str, claim: str, media_type: str) -> None:
    """End a claim whose file was not stored, so that the next request need not wait."""
    async with database.write(quiet=True) as connection:
        await connection.execute(sa.update(U).where(*_claimed(name, claim)).values(media_type=media_type))


async def mark_stored(database: Database, name: str, claim: str, media_type: str, size: int) -> bool:
    """Mark an announced file as stored; return False if the claim has expired or the file is withdrawn."""
    statement = sa.update(U).where(*_claimed(name, claim))
    async with database.write(quiet=True) as connection:
        changed = await connection.execute(statement.values(stored=True, media_type=media_type, size=size))
    return changed.rowcount == 1


def _filling_until(ms: int) -> str:
    """Format a time so that texts sort like times, in any collation."""
    return f"{FILLING}{ms:015d}"


def _claimed(name: str, claim: str) -> tuple[sa.ColumnElement[bool], ...]:
    return U.c.name == name, U.c.stored.is_(False), U.c.media_type == claim


async def get(database: Database, name: str, *, of_valid_key: bool = False) -> Upload | None:
    """Return an upload by its name; who knows the name may use it. None if there is none, or it is being removed.

    With `of_valid_key`, None also if its key was revoked, because such a key may not store files any more.
    """
    wanted = sa.select(*_COLUMNS).where(U.c.name == name, U.c.media_type != WITHDRAWN)
    async with database.read() as connection:
        row = (await connection.execute(wanted.where(_KEY_IS_VALID) if of_valid_key else wanted)).first()
    return Upload(*row) if row else None


async def withdrawn(connection: AsyncConnection, names: Collection[str]) -> frozenset[str]:
    """Return those of these files that are being removed; the others are locked until the transaction ends."""
    if not names:
        return frozenset()
    rows = await connection.execute(sa.select(U.c.name, U.c.media_type).where(U.c.name.in_(names)).with_for_update())
    return frozenset(row.name for row in rows if row.media_type == WITHDRAWN)


async def mark_used(connection: AsyncConnection, names: Collection[str], now_ms: int) -> None:
    """Record that tasks which are being enqueued use these files."""
    if names:
        await connection.execute(sa.update(U).where(U.c.name.in_(names)).values(used_ms=now_ms))


def gone_error() -> InvalidInput:
    """Return the error for a task that names a file which no longer exists."""
    return InvalidInput("image or mask is a file that no longer exists; accepted: a recently uploaded file")


async def prepare_sums(database: Database, key_id: str, limits: Limits) -> None:
    """Compute sums that would take too long inside a transaction; call this before it. Raises DatabaseUnavailable."""
    if limits.bytes_max:
        await database.cached_sums.prepare(key_id, partial(_stored_sum, database, key_id))


async def _stored_sum(database: Database, key_id: str) -> tuple[int, int]:
    async with database.read() as connection:
        return (await _stored(connection, [key_id])).get(key_id, (0, 0))


async def stored_bytes(database: Database, connection: AsyncConnection, key_ids: Collection[str]) -> Mapping[str, int]:
    """Return the stored bytes of each key: its uploads, including announced ones, and its images that are not deleted.

    The sum is exact, except for keys with very many rows (`sums.MANY`). Of those it is at most `sums.GOOD_MS` old, plus
    what this process has added since.
    """
    cached = {key_id: database.cached_sums.large(key_id) for key_id in key_ids}
    uncached = [key_id for key_id, size in cached.items() if size is None]
    exact = await _stored(connection, uncached) if uncached else {}
    return {key_id: exact.get(key_id, (0, 0))[1] if size is None else size for key_id, size in cached.items()}


async def _stored(connection: AsyncConnection, key_ids: Collection[str]) -> Mapping[str, tuple[int, int]]:
    """Return the number of rows and the stored bytes of each key that has any."""
    uploaded = sa.select(U.c.key_id, sa.func.count(), sa.func.sum(U.c.size)).where(U.c.key_id.in_(key_ids))
    generated = sa.select(P.c.key_id, sa.func.count(), sa.func.sum(P.c.output_bytes)).where(P.c.key_id.in_(key_ids))
    stored: dict[str, tuple[int, int]] = {}
    for sums in (uploaded.group_by(U.c.key_id), generated.where(P.c.status != Status.DELETED).group_by(P.c.key_id)):
        for key_id, rows, size in await connection.execute(sums):
            rows_before, size_before = stored.get(key_id, (0, 0))
            stored[key_id] = rows_before + rows, size_before + int(size)
    return stored


def check_bytes(limits: Limits, stored: int, more: int = 1) -> None:
    """Check that a key may store some bytes more. Raises TooMany."""
    if limits.bytes_max and stored + more > limits.bytes_max:
        raise TooMany(
            f"this key may keep {limits.bytes_max} bytes of uploads and images, and has {stored}; delete predictions, "
            "or try again when old ones have expired",
            BYTES_RETRY_S,
        )


async def _check(
    database: Database,
    connection: AsyncConnection,
    key_id: str,
    limits: Limits,
    size: int,
    within_request: bool,
) -> None:
    now = database.now_ms()
    if limits.requests_per_minute and not within_request:
        count, since = await _requests(connection, key_id, now - MINUTE_MS)
        if count >= limits.requests_per_minute:
            wait_s = max(1, -(-(since + MINUTE_MS - now) // 1000))
            raise TooMany(f"this key may make {limits.requests_per_minute} requests a minute; try again later", wait_s)
    if limits.bytes_max:
        check_bytes(limits, (await stored_bytes(database, connection, [key_id]))[key_id], size)


async def _requests(connection: AsyncConnection, key_id: str, after_ms: int) -> tuple[int, int]:
    """Count the submissions and uploads of a key since a time; return the count, and the time of the first, in ms."""
    count, first = 0, after_ms
    uploaded = sa.and_(U.c.key_id == key_id, U.c.created_ms > after_ms, U.c.filename != INLINE)
    submitted = sa.and_(P.c.key_id == key_id, P.c.created_ms > after_ms)
    for created, wanted in ((U.c.created_ms, uploaded), (P.c.created_ms, submitted)):
        row = (await connection.execute(sa.select(sa.func.count(), sa.func.min(created)).where(wanted))).one()
        if row[0]:
            first = min(first, row[1]) if count else row[1]
            count += row[0]
    return count, first
