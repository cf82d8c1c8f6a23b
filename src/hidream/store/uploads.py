"""Files that clients sent: who sent them, and what they are; the bytes lie in the object store.

An upload counts against its key's limits from when it is announced: as a request of the minute, and with its bytes for
as long as it is there.
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
from hidream.store.schema import KEYS
from hidream.store.schema import PREDICTIONS as P
from hidream.store.schema import UPLOADS as U
from hidream.types import Status

MINUTE_MS = 60_000
BYTES_RETRY_S = 600
"""When a key that keeps too much may look again: a sweep comes so often."""
NO_LIMITS = Limits()
INLINE = ""
"""The filename of what came within a submission; that is a request of its own, and no upload is."""
WITHDRAWN = ""
"""The media type of what is being removed: no task can use it any more, and nothing can be stored under its name."""
FILLING = "filling/"
"""How the media type of an announced file begins while one request puts the bytes into their place. Until when follows,
in milliseconds, and a random text that tells this request from others."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One row; `name` is the object's, unguessable. `stored` is false while it was only announced."""

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
    """See that a key may bring something now; how much, `announce` counts. Raises TooMany."""
    if key.limits.requests_per_minute or key.limits.bytes_max:
        await prepare_sums(database, key.id, key.limits)
        async with database.read() as connection:
            await _check(database, connection, key.id, key.limits, 1, within_request)


async def create(
    database: Database, upload: Upload, limits: Limits = NO_LIMITS, *, within_request: bool = False
) -> None:
    """Write down a file, before its bytes come or when they are there. Raises TooMany, and then nothing is written."""
    limited = bool(limits.requests_per_minute or limits.bytes_max)
    await prepare_sums(database, upload.key_id, limits)
    async with database.write(exclusive=limited, quiet=True) as connection:
        await _check(database, connection, upload.key_id, limits, upload.size, within_request)
        await connection.execute(sa.insert(U).values({name: getattr(upload, name) for name in Upload.__slots__}))
        database.cached_sums.add(upload.key_id, upload.size)


async def claim(database: Database, name: str, for_s: float) -> str | None:
    """Let one request, of all processes', put an announced file's bytes into their place, for so many seconds.

    None if another one does, or the file is there, or being removed, or its key was revoked. The claim is for `store`.
    """
    now = database.now_ms()
    made = f"{_filling_until(now + round(for_s * 1000))}/{secrets.token_hex(16)}"
    free = sa.or_(U.c.media_type.not_like(f"{FILLING}%"), U.c.media_type < _filling_until(now))
    mine = (U.c.name == name, U.c.stored.is_(False), U.c.media_type != WITHDRAWN, free, _KEY_IS_VALID)
    async with database.write(quiet=True) as connection:
        changed = await connection.execute(sa.update(U).where(*mine).values(media_type=made))
    return made if changed.rowcount == 1 else None


async def release(database: Database, name: str, claim: str, media_type: str) -> None:
    """End a claim whose file did not come into its place, so that the next request need not wait."""
    async with database.write(quiet=True) as connection:
        await connection.execute(sa.update(U).where(*_claimed(name, claim)).values(media_type=media_type))


async def mark_stored(database: Database, name: str, claim: str, media_type: str, size: int) -> bool:
    """Say that an announced file's bytes are in their place; False if the claim is over, or the file withdrawn."""
    statement = sa.update(U).where(*_claimed(name, claim))
    async with database.write(quiet=True) as connection:
        changed = await connection.execute(statement.values(stored=True, media_type=media_type, size=size))
    return changed.rowcount == 1


def _filling_until(ms: int) -> str:
    """Write a time so that a later one is a later text, in any collation."""
    return f"{FILLING}{ms:015d}"


def _claimed(name: str, claim: str) -> tuple[sa.ColumnElement[bool], ...]:
    return U.c.name == name, U.c.stored.is_(False), U.c.media_type == claim


async def get(database: Database, name: str, *, of_valid_key: bool = False) -> Upload | None:
    """Look up a file by its name, which is the right to it; None if there is none, or it is being removed.

    With `of_valid_key` None also if its key was revoked: nobody brings such a key's files any more.
    """
    wanted = sa.select(*_COLUMNS).where(U.c.name == name, U.c.media_type != WITHDRAWN)
    async with database.read() as connection:
        row = (await connection.execute(wanted.where(_KEY_IS_VALID) if of_valid_key else wanted)).first()
    return Upload(*row) if row else None


async def withdrawn(connection: AsyncConnection, names: Collection[str]) -> frozenset[str]:
    """Say which of these files are being removed; the others cannot be until the transaction has ended."""
    if not names:
        return frozenset()
    rows = await connection.execute(sa.select(U.c.name, U.c.media_type).where(U.c.name.in_(names)).with_for_update())
    return frozenset(row.name for row in rows if row.media_type == WITHDRAWN)


async def mark_used(connection: AsyncConnection, names: Collection[str], now_ms: int) -> None:
    """Say that tasks which are being taken in name these files."""
    if names:
        await connection.execute(sa.update(U).where(U.c.name.in_(names)).values(used_ms=now_ms))


def gone_error() -> InvalidInput:
    """Make the error of a task that names a file which is there no longer."""
    return InvalidInput("image or mask is a file that is there no longer; accepted: one that was uploaded lately")


async def prepare_sums(database: Database, key_id: str, limits: Limits) -> None:
    """Before a transaction asks what a key keeps: add up what would take it too long. Raises DatabaseUnavailable."""
    if limits.bytes_max:
        await database.cached_sums.prepare(key_id, partial(_added_up, database, key_id))


async def _added_up(database: Database, key_id: str) -> tuple[int, int]:
    async with database.read() as connection:
        return (await _kept(connection, [key_id])).get(key_id, (0, 0))


async def stored_bytes(database: Database, connection: AsyncConnection, key_ids: Collection[str]) -> Mapping[str, int]:
    """Say what is kept of each key: its uploads, announced ones too, and its images that are not deleted.

    That is exact, but for keys that keep very much (`sums.MANY` rows): of those it is what was so at most
    `sums.GOOD_MS` ago, and what this process was asked to keep since then.
    """
    total = {key_id: database.cached_sums.large(key_id) for key_id in key_ids}
    few = [key_id for key_id, large in total.items() if large is None]
    exact = await _kept(connection, few) if few else {}
    return {key_id: exact.get(key_id, (0, 0))[1] if large is None else large for key_id, large in total.items()}


async def _kept(connection: AsyncConnection, key_ids: Collection[str]) -> Mapping[str, tuple[int, int]]:
    """Count and add up what is kept of each key; keys that keep nothing are not in it."""
    uploaded = sa.select(U.c.key_id, sa.func.count(), sa.func.sum(U.c.size)).where(U.c.key_id.in_(key_ids))
    drawn = sa.select(P.c.key_id, sa.func.count(), sa.func.sum(P.c.output_bytes)).where(P.c.key_id.in_(key_ids))
    kept: dict[str, tuple[int, int]] = {}
    for sums in (uploaded.group_by(U.c.key_id), drawn.where(P.c.status != Status.DELETED).group_by(P.c.key_id)):
        for key_id, rows, size in await connection.execute(sums):
            rows_before, size_before = kept.get(key_id, (0, 0))
            kept[key_id] = rows_before + rows, size_before + int(size)
    return kept


def check_bytes(limits: Limits, kept: int, more: int = 1) -> None:
    """See that a key may keep some bytes more. Raises TooMany."""
    if limits.bytes_max and kept + more > limits.bytes_max:
        raise TooMany(
            f"this key may keep {limits.bytes_max} bytes of uploads and images, and has {kept}; delete predictions, "
            "or try again when old ones have gone",
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
    """Count submissions and uploads of a key, and say when the first of them was made."""
    count, first = 0, after_ms
    mine = sa.and_(U.c.key_id == key_id, U.c.created_ms > after_ms, U.c.filename != INLINE)
    asked = sa.and_(P.c.key_id == key_id, P.c.created_ms > after_ms)
    for created, wanted in ((U.c.created_ms, mine), (P.c.created_ms, asked)):
        row = (await connection.execute(sa.select(sa.func.count(), sa.func.min(created)).where(wanted))).one()
        if row[0]:
            first = min(first, row[1]) if count else row[1]
            count += row[0]
    return count, first
