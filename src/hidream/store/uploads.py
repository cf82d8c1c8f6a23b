"""Files that clients sent: who sent them, and what they are; the bytes lie in the object store."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from hidream.store.database import Database
from hidream.store.schema import UPLOADS as U


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


async def announce(database: Database, upload: Upload) -> None:
    """Write down a file, before its bytes come or when they are there."""
    async with database.write(quiet=True) as connection:
        await connection.execute(sa.insert(U).values({name: getattr(upload, name) for name in Upload.__slots__}))


async def store(database: Database, name: str, media_type: str, size: int) -> bool:
    """Say that an announced file's bytes are in their place; False if none was announced, or it is there already."""
    statement = sa.update(U).where(U.c.name == name, U.c.stored.is_(False))
    async with database.write(quiet=True) as connection:
        changed = await connection.execute(statement.values(stored=True, media_type=media_type, size=size))
    return changed.rowcount == 1


async def get(database: Database, name: str) -> Upload | None:
    """Look up a file by its name, which is the right to it; None if there is none."""
    async with database.read() as connection:
        row = (await connection.execute(sa.select(*_COLUMNS).where(U.c.name == name))).first()
    return Upload(*row) if row else None
