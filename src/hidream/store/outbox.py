"""Webhooks that are owed: each is a row from the moment its task ends until it is delivered or given up.

A row that is due is claimed by moving `due_ms` into the future: who claims it has until then, and if he dies, it is due
again. So each is delivered at least once, and under the same id each time, by which receivers know it.

**A share for each key.** Of the places that a process has for deliveries, a key may take another one only while it
holds fewer than are free. So one key alone holds half of them, k keys 1/(k + 1) each, and there is always a place for a
key that holds none, however many receivers of the others hang. (Dynamic thresholds: Choudhury and Hahne 1998.)
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hidream.store.database import Database
from hidream.store.schema import DELIVERIES as D
from hidream.store.schema import PREDICTIONS as P


class DeliveryState(StrEnum):
    """How far a delivery is; from WAITING there is a way to the others, and back by `replay`."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One row. `attempts` counts those that were begun, `status_code` and `error` are the last one's; times are ms.

    `key_id` is empty in rows of older releases' processes: all of these are treated as one key's.
    """

    id: str
    prediction_id: str
    key_id: str
    url: str
    state: DeliveryState
    created_ms: int
    due_ms: int
    attempts: int
    status_code: int | None
    error: str
    finished_ms: int | None


_COLUMNS = tuple(D.c[name] for name in Delivery.__slots__)
_SOONEST = sa.select(sa.func.min(D.c.due_ms)).where(D.c.state == DeliveryState.WAITING)


async def add(connection: AsyncConnection, owed: Sequence[tuple[str, str, str]], now: int) -> None:
    """Write down webhooks, by prediction id, key id and URL, in the transaction that ends their tasks."""
    if owed:
        await connection.execute(sa.insert(D), [_row(*each, now) for each in owed])


async def claim(database: Database, room: int, lease_s: float, running: Mapping[str, int] = {}) -> list[Delivery]:
    """Take deliveries that are due for `lease_s` seconds, the most overdue of each key first, in turns of the keys.

    `room` is how many places are free, and `running` how many each key holds already; no key gets more than its share.
    """
    now = database.now_ms()
    async with database.read() as connection:
        soonest = (await connection.execute(_SOONEST)).scalar()
        if soonest is None or soonest > now:
            return []
        ids = _in_turns(await _due(connection, room, running, now), running, room)
    if not ids:
        return []
    still_due = sa.select(D.c.id).where(D.c.id.in_(ids), *_is_due(now)).with_for_update(skip_locked=True)
    async with database.write(quiet=True) as connection:
        mine = (await connection.scalars(still_due)).all()  # not those that another process has claimed meanwhile
        statement = (
            sa.update(D)
            .where(D.c.id.in_(mine), *_is_due(now))
            .values(due_ms=now + round(lease_s * 1000), attempts=D.c.attempts + 1)
            .returning(*_COLUMNS)
        )
        claimed = {row.id: _delivery(row) for row in await connection.execute(statement)}
    return [claimed[id_] for id_ in ids if id_ in claimed]


async def record_attempt(
    database: Database,
    delivery: Delivery,
    state: DeliveryState,
    status_code: int | None,
    error: str,
    again_in_s: float = 0,
) -> bool:
    """Say how an attempt ended, and if WAITING, when it is due again; False if the row is no longer this claim's."""
    now = database.now_ms()
    done = state is not DeliveryState.WAITING
    statement = (
        sa.update(D)
        .where(D.c.id == delivery.id, D.c.state == DeliveryState.WAITING)
        .where(D.c.attempts == delivery.attempts, D.c.due_ms == delivery.due_ms)  # `replay` counts anew
        .values(state=state, status_code=status_code, error=error, due_ms=now + round(again_in_s * 1000))
        .values(finished_ms=now if done else None)
    )
    async with database.write(quiet=True) as connection:
        return (await connection.execute(statement)).rowcount == 1


async def postpone(database: Database, claimed: Sequence[Delivery], for_s: float) -> None:
    """Give claims back without a word to the receiver: they are due again later, and no attempt was made."""
    if not claimed:
        return
    due_ms = database.now_ms() + round(for_s * 1000)
    claims = [(delivery.id, delivery.attempts, delivery.due_ms) for delivery in claimed]
    mine = sa.tuple_(D.c.id, D.c.attempts, D.c.due_ms).in_(claims)
    statement = sa.update(D).where(D.c.state == DeliveryState.WAITING, mine)
    async with database.write(quiet=True) as connection:
        await connection.execute(statement.values(due_ms=due_ms, attempts=D.c.attempts - 1))


async def list_deliveries(database: Database, prediction_id: str, key_id: str) -> list[Delivery]:
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
        .values(state=DeliveryState.WAITING, due_ms=database.now_ms(), attempts=0, error="", finished_ms=None)
    )
    async with database.write() as connection:
        return (await connection.execute(statement)).rowcount == 1


async def next_due_ms(database: Database, room: int = 1, running: Mapping[str, int] = {}) -> int | None:
    """When the next delivery is due, of keys that have not all of their share; None when none is owed."""
    full, firsts = _full(running, room), _firsts()
    wanted = _SOONEST
    if full:
        wanted = sa.select(sa.func.min(firsts.c.due_ms)).where(firsts.c.key_id.not_in(full))
    async with database.read() as connection:
        due_ms: int | None = (await connection.execute(wanted)).scalar()
    return due_ms


def _is_due(now: int) -> tuple[sa.ColumnElement[bool], ...]:
    return D.c.state == DeliveryState.WAITING, D.c.due_ms <= now


def _full(running: Mapping[str, int], room: int) -> list[str]:
    """Which keys have all of their share."""
    return [key_id for key_id, count in running.items() if count >= room]


def _firsts() -> sa.Subquery:
    """Each key that is owed something, and when its first is due.

    It goes from key to key by the index `deliveries_in_turns`: two look-ups a key, however many each is owed.
    """
    waiting = D.c.state == DeliveryState.WAITING
    keys = sa.select(sa.func.min(D.c.key_id).label("key_id")).where(waiting).cte("owed_keys", recursive=True)
    after = sa.select(sa.func.min(D.c.key_id)).where(waiting, D.c.key_id > keys.c.key_id).correlate(keys)
    keys = keys.union_all(sa.select(after.scalar_subquery()).select_from(keys).where(keys.c.key_id.is_not(None)))
    first = sa.select(sa.func.min(D.c.due_ms)).where(waiting, D.c.key_id == keys.c.key_id).correlate(keys)
    found = sa.select(keys.c.key_id, first.scalar_subquery().label("due_ms"))
    return found.where(keys.c.key_id.is_not(None)).subquery("firsts")


async def _due(
    connection: AsyncConnection, room: int, running: Mapping[str, int], now: int
) -> dict[str, Sequence[str]]:
    """Read some of what is due, the keys with the fewest running first: together about as many as there is room for."""
    firsts = _firsts()
    wanted = sa.select(firsts).where(firsts.c.due_ms <= now, firsts.c.key_id.not_in(_full(running, room)))
    wanted = wanted.order_by(firsts.c.due_ms, firsts.c.key_id).limit(room + len(running))
    found = [row.key_id for row in await connection.execute(wanted)]
    chosen = sorted(found, key=lambda key_id: running.get(key_id, 0))[:room]
    each = -(-room // max(1, len(chosen)))  # who is owed more gets more a moment later
    waiting = {}
    for key_id in chosen:
        first = sa.select(D.c.id).where(D.c.key_id == key_id, *_is_due(now)).order_by(D.c.due_ms, D.c.id).limit(each)
        waiting[key_id] = (await connection.scalars(first)).all()
    return waiting


def _in_turns(waiting: Mapping[str, Sequence[str]], running: Mapping[str, int], room: int) -> list[str]:
    """Hand out `room` places one by one, each to the key that holds the fewest; `waiting` are ids by key, in order."""
    held = {key_id: running.get(key_id, 0) for key_id in waiting}
    left = {key_id: list(reversed(ids)) for key_id, ids in waiting.items()}
    taken: list[str] = []
    while able := [key_id for key_id in waiting if left[key_id] and held[key_id] < room - len(taken)]:
        key_id = min(able, key=lambda each: held[each])
        taken.append(left[key_id].pop())
        held[key_id] += 1
    return taken


def _row(prediction_id: str, key_id: str, url: str, now: int) -> dict[str, object]:
    return {
        "id": uuid.uuid4().hex,
        "prediction_id": prediction_id,
        "key_id": key_id,
        "url": url,
        "state": DeliveryState.WAITING,
        "created_ms": now,
        "due_ms": now,
        "attempts": 0,
        "error": "",
    }


def _delivery(row: Sequence[Any]) -> Delivery:
    values = dict(zip(Delivery.__slots__, row, strict=True))
    return Delivery(**values | {"state": DeliveryState(values["state"])})
