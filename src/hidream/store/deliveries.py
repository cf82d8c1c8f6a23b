"""Webhooks that are owed: each is a row from the moment its task ends until it is delivered or given up.

A row that is due is claimed by moving `due_ms` into the future: who claims it has until then, and if he dies, it is due
again. So each is delivered at least once, and under the same id each time, by which receivers know it.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.store.database import Database
from hidream.store.schema import DELIVERIES as D
from hidream.store.schema import PREDICTIONS as P


class State(StrEnum):
    """How far a delivery is; from WAITING there is a way to the others, and back by `replay`."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One row. `attempts` counts those that were begun, `status_code` and `error` are the last one's; times are ms."""

    id: str
    prediction_id: str
    url: str
    state: State
    created_ms: int
    due_ms: int
    attempts: int
    status_code: int | None
    error: str
    finished_ms: int | None


_COLUMNS = tuple(D.c[name] for name in Delivery.__slots__)


async def owe(connection: AsyncConnection, owed: Sequence[tuple[str, str]], now: int) -> None:
    """Write down webhooks, by prediction id and URL, in the transaction that ends their tasks."""
    if owed:
        await connection.execute(sa.insert(D), [_row(prediction_id, url, now) for prediction_id, url in owed])


async def claim(database: Database, limit: int, lease_s: float) -> list[Delivery]:
    """Take deliveries that are due, the most overdue first, for `lease_s` seconds."""
    now = database.now_ms()
    is_due = (D.c.state == State.WAITING, D.c.due_ms <= now)
    async with database.read() as connection:
        if not (await connection.execute(sa.select(D.c.id).where(*is_due).limit(1))).all():
            return []
    due = sa.select(D.c.id).where(*is_due).order_by(D.c.due_ms, D.c.id).limit(limit).with_for_update(skip_locked=True)
    async with database.write(quiet=True) as connection:
        ids = (await connection.scalars(due)).all()
        statement = (
            sa.update(D)
            .where(D.c.id.in_(ids), *is_due)
            .values(due_ms=now + round(lease_s * 1000), attempts=D.c.attempts + 1)
            .returning(*_COLUMNS)
        )
        claimed = {row.id: _delivery(row) for row in await connection.execute(statement)}
    return [claimed[id_] for id_ in ids]


async def settle(
    database: Database, delivery: Delivery, state: State, status_code: int | None, error: str, again_in_s: float = 0
) -> bool:
    """Say how an attempt ended, and if WAITING, when it is due again; False if the row is no longer this claim's."""
    now = database.now_ms()
    done = state is not State.WAITING
    statement = (
        sa.update(D)
        .where(D.c.id == delivery.id, D.c.state == State.WAITING)
        .where(D.c.attempts == delivery.attempts, D.c.due_ms == delivery.due_ms)  # `replay` counts anew
        .values(state=state, status_code=status_code, error=error, due_ms=now + round(again_in_s * 1000))
        .values(finished_ms=now if done else None)
    )
    async with database.write(quiet=True) as connection:
        return (await connection.execute(statement)).rowcount == 1


async def put_off(database: Database, claimed: Sequence[Delivery], for_s: float) -> None:
    """Give claims back without a word to the receiver: they are due again later, and no attempt was made."""
    if not claimed:
        return
    due_ms = database.now_ms() + round(for_s * 1000)
    claims = [(delivery.id, delivery.attempts, delivery.due_ms) for delivery in claimed]
    mine = sa.tuple_(D.c.id, D.c.attempts, D.c.due_ms).in_(claims)
    statement = sa.update(D).where(D.c.state == State.WAITING, mine)
    async with database.write(quiet=True) as connection:
        await connection.execute(statement.values(due_ms=due_ms, attempts=D.c.attempts - 1))


async def listed(database: Database, prediction_id: str, key_id: str) -> list[Delivery]:
    """List the deliveries of a task of this key, the oldest first."""
    wanted = (
        sa.select(*_COLUMNS)
        .join(P, P.c.id == D.c.prediction_id)
        .where(D.c.prediction_id == prediction_id, P.c.key_id == key_id)
        .order_by(D.c.created_ms, D.c.id)
    )
    async with database.read() as connection:
        return [_delivery(row) for row in await connection.execute(wanted)]


async def replay(database: Database, delivery_id: str, prediction_id: str, key_id: str) -> bool:
    """Owe a delivery once more, under the same id, from its first attempt on; False if there is none."""
    mine = sa.exists().where(P.c.id == D.c.prediction_id, P.c.key_id == key_id)
    statement = (
        sa.update(D)
        .where(D.c.id == delivery_id, D.c.prediction_id == prediction_id, mine)
        .values(state=State.WAITING, due_ms=database.now_ms(), attempts=0, error="", finished_ms=None)
    )
    async with database.write() as connection:
        return (await connection.execute(statement)).rowcount == 1


async def next_due_ms(database: Database) -> int | None:
    """When the next delivery is due; None when none is owed."""
    wanted = sa.select(sa.func.min(D.c.due_ms)).where(D.c.state == State.WAITING)
    async with database.read() as connection:
        due_ms: int | None = (await connection.execute(wanted)).scalar()
    return due_ms


def _row(prediction_id: str, url: str, now: int) -> dict[str, object]:
    return {
        "id": uuid.uuid4().hex,
        "prediction_id": prediction_id,
        "url": url,
        "state": State.WAITING,
        "created_ms": now,
        "due_ms": now,
        "attempts": 0,
        "error": "",
    }


def _delivery(row: Sequence[Any]) -> Delivery:
    values = dict(zip(Delivery.__slots__, row, strict=True))
    return Delivery(**values | {"state": State(values["state"])})
