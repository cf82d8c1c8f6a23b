"""The audit log: what administrators and keys did to keys. Each entry is written in the transaction of its act.

An entry names the actor (`user@host` of the shell, `key:ID` of a request, or SYSTEM), the act and the key. It contains
no secret, no prompt and no key's name, so it may stay when the key's data are erased.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.store.database import Database
from hidream.store.schema import AUDIT_LOG as A

SYSTEM = "hidream"
"""The actor when a process acts on its own."""
ACTOR_MAX_CHARS = 128
RETENTION_MS = 365 * 86_400_000
"""One year: PCI DSS 10.5.1 asks for 12 months, and data about people must not be kept longer than needed."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row; `at_ms` is ms since the epoch, `subject` the key's id."""

    id: str
    at_ms: int
    actor: str
    act: str
    subject: str
    details: Mapping[str, Any]


_COLUMNS = tuple(A.c[name] for name in AuditEntry.__slots__)


async def record(
    connection: AsyncConnection,
    now: int,
    actor: str,
    act: str,
    subject: str,
    **details: Any,  # noqa: ANN401 - JSON
) -> None:
    """Write an entry in the transaction of its act; `act` is the command's name, such as `keys revoke`."""
    row = {"id": uuid.uuid4().hex, "at_ms": now, "actor": actor[:ACTOR_MAX_CHARS], "act": act, "subject": subject}
    await connection.execute(sa.insert(A).values(row | {"details": details}))


async def append(database: Database, actor: str, act: str, subject: str, **details: Any) -> None:  # noqa: ANN401
    """Write an entry about an act that changes nothing in the database."""
    async with database.write(quiet=True) as connection:
        await record(connection, database.now_ms(), actor, act, subject, **details)


async def entries(database: Database, since_ms: int = 0, subject: str | None = None) -> list[AuditEntry]:
    """List the entries since a time, about all keys or one, oldest first."""
    statement = sa.select(*_COLUMNS).where(A.c.at_ms >= since_ms).order_by(A.c.at_ms, A.c.id)
    if subject is not None:
        statement = statement.where(A.c.subject == subject)
    async with database.read() as connection:
        return [AuditEntry(*row) for row in await connection.execute(statement)]


async def purge(database: Database) -> int:
    """Delete entries older than RETENTION_MS; return how many."""
    old = A.c.at_ms < database.now_ms() - RETENTION_MS
    async with database.read() as connection:  # usually there are none, and a write would be wasted
        if not (await connection.execute(sa.select(A.c.id).where(old).limit(1))).all():
            return 0
    async with database.write(quiet=True) as connection:
        return (await connection.execute(sa.delete(A).where(old))).rowcount
