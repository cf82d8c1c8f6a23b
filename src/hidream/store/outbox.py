"""The outbox of webhooks: a task that ends adds a row, which stays until it is delivered or given up.

A process claims a due row by moving `due_ms` into the future. If the process dies, the row is due again at that time.
So each webhook is delivered at least once. Every attempt carries the same id, by which receivers recognise it.

**A share for each key.** A process has a number of delivery slots. A key may take another slot only while it holds
fewer than are free. So a single key holds half of them, and k keys hold 1/(k + 1) each. There is always a slot for a
key that holds none, however many receivers of other keys hang. (Dynamic thresholds: Choudhury and Hahne 1998.)
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
    """The state of a delivery: WAITING changes to one of the others, and `replay` changes it back."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One row. `attempts` counts started attempts; `status_code` and `error` are of the last one. Times are in ms.

    `key_id` is empty in rows that an older release wrote; all of these count as one key's.
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


async def add(connection: AsyncConnection, webhooks: Sequence[tuple[str, str, str]], now: int) -> None:
    """Add webhooks (prediction id, key id, URL) in the transaction that ends their tasks."""
    if webhooks:
        await connection.execute(sa.insert(D), [_row(*each, now) for each in webhooks])


async def claim(database: Database, free_slots: int, lease_s: float, running: Mapping[str, int] = {}) -> list[Delivery]:
    """Claim due deliveries for `lease_s` seconds: round robin over the keys, the most overdue of each key first.

    `running` is the number of slots that each key holds already. No key gets more than its share.
    """
    now = database.now_ms()
    async with database.read() as connection:
        soonest = (await connection.execute(_SOONEST)).scalar()
        if soonest is None or soonest > now:
            return []
        ids = _round_robin(await _due(connection, free_slots, running, now), running, free_slots)
    if not ids:
        return []
    still_due = sa.select(D.c.id).where(D.c.id.in_(ids), *_is_due(now)).with_for_update(skip_locked=True)
    async with database.write(quiet=True) as connection:
        mine = (await connection.scalars(still_due)).all()  # without those that another process claimed meanwhile
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
    """Record the outcome of an attempt; return False if another claim holds the row now.

    A delivery that stays WAITING is due again after `again_in_s` seconds.
    """
    now = database.now_ms()
    done = state is not DeliveryState.WAITING
    statement = (
        sa.update(D)
        .where(D.c.id == delivery.id, D.c.state == DeliveryState.WAITING)
        .where(D.c.attempts == delivery.attempts, D.c.due_ms == delivery.due_ms)  # `replay` resets the count
        .values(state=state, status_code=status_code, error=error, due_ms=now + round(again_in_s * 1000))
        .values(finished_ms=now if done else None)
    )
    async with database.write(quiet=True) as connection:
        return (await connection.execute(statement)).rowcount == 1


async def postpone(database: Database, claimed: Sequence[Delivery], for_s: float) -> None:
    """Release claims for which no attempt was made; they are due again after `for_s` seconds."""
    if not claimed:
        return
    due_ms = database.now_ms() + round(for_s * 1000)
    claims = [(delivery.id, delivery.attempts, delivery.due_ms) for delivery in claimed]
    mine = sa.tuple_(D.c.id, D.c.attempts, D.c.due_ms).in_(claims)
    statement = sa.update(D).where(D.c.state == DeliveryState.WAITING, mine)
    async with database.write(quiet=True) as connection:
        await connection.execute(statement.values(due_ms=due_ms, attempts=D.c.attempts - 1))


async def list_deliveries(database: Database, prediction_id: str, key_id: str) -> list[Delivery]:
    """List the deliveries of a task of this key, oldest first."""
    wanted = (
        sa.select(*_COLUMNS)
        .join(P, P.c.id == D.c.prediction_id)
        .where(D.c.prediction_id == prediction_id, P.c.key_id == key_id)
        .order_by(D.c.created_ms, D.c.id)
    )
    async with database.read() as connection:
        return [_delivery(row) for row in await connection.execute(wanted)]


async def replay(database: Database, delivery_id: str, prediction_id: str, key_id: str) -> bool:
    """Make a delivery due again, with the same id and no attempts; return False if there is none."""
    mine = sa.exists().where(P.c.id == D.c.prediction_id, P.c.key_id == key_id)
    statement = (
        sa.update(D)
        .where(D.c.id == delivery_id, D.c.prediction_id == prediction_id, mine)
        .values(state=DeliveryState.WAITING, due_ms=database.now_ms(), attempts=0, error="", finished_ms=None)
    )
    async with database.write() as connection:
        return (await connection.execute(statement)).rowcount == 1


async def next_due_ms(database: Database, free_slots: int = 1, running: Mapping[str, int] = {}) -> int | None:
    """When the next delivery of a key below its share is due, in ms; None if there is none."""
    full, firsts = _full(running, free_slots), _firsts()
    wanted = _SOONEST
    if full:
        wanted = sa.select(sa.func.min(firsts.c.due_ms)).where(firsts.c.key_id.not_in(full))
    async with database.read() as connection:
        due_ms: int | None = (await connection.execute(wanted)).scalar()
    return due_ms


def _is_due(now: int) -> tuple[sa.ColumnElement[bool], ...]:
    return D.c.state == DeliveryState.WAITING, D.c.due_ms <= now


def _full(running: Mapping[str, int], free_slots: int) -> list[str]:
    """The keys that hold their whole share."""
    return [key_id for key_id, count in running.items() if count >= free_slots]


def _firsts() -> sa.Subquery:
    """Each key with waiting deliveries, and when its first one is due.

    The query steps through the keys with the index `deliveries_in_turns`: two look-ups per key, however many
    deliveries a key has.
    """
    waiting = D.c.state == DeliveryState.WAITING
    keys = sa.select(sa.func.min(D.c.key_id).label("key_id")).where(waiting).cte("owed_keys", recursive=True)
    after = sa.select(sa.func.min(D.c.key_id)).where(waiting, D.c.key_id > keys.c.key_id).correlate(keys)
    keys = keys.union_all(sa.select(after.scalar_subquery()).select_from(keys).where(keys.c.key_id.is_not(None)))
    first = sa.select(sa.func.min(D.c.due_ms)).where(waiting, D.c.key_id == keys.c.key_id).correlate(keys)
    found = sa.select(keys.c.key_id, first.scalar_subquery().label("due_ms"))
    return found.where(keys.c.key_id.is_not(None)).subquery("firsts")


async def _due(
    connection: AsyncConnection, free_slots: int, running: Mapping[str, int], now: int
) -> dict[str, Sequence[str]]:
    """Read ids of due deliveries by key, keys with the fewest running first; about `free_slots` ids in total."""
    firsts = _firsts()
    wanted = sa.select(firsts).where(firsts.c.due_ms <= now, firsts.c.key_id.not_in(_full(running, free_slots)))
    wanted = wanted.order_by(firsts.c.due_ms, firsts.c.key_id).limit(free_slots + len(running))
    found = [row.key_id for row in await connection.execute(wanted)]
    chosen = sorted(found, key=lambda key_id: running.get(key_id, 0))[:free_slots]
    each = -(-free_slots // max(1, len(chosen)))  # a key with more gets the rest from the next claim
    waiting = {}
    for key_id in chosen:
        first = sa.select(D.c.id).where(D.c.key_id == key_id, *_is_due(now)).order_by(D.c.due_ms, D.c.id).limit(each)
        waiting[key_id] = (await connection.scalars(first)).all()
    return waiting


def _round_robin(waiting: Mapping[str, Sequence[str]], running: Mapping[str, int], free_slots: int) -> list[str]:
    """Assign free slots one by one to the key that holds the fewest; `waiting` has the ids of each key, in order."""
    held = {key_id: running.get(key_id, 0) for key_id in waiting}
    left = {key_id: list(reversed(ids)) for key_id, ids in waiting.items()}
    taken: list[str] = []
    while eligible := [key_id for key_id in waiting if left[key_id] and held[key_id] < free_slots - len(taken)]:
        key_id = min(eligible, key=lambda each: held[each])
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
