"""The outbox of webhooks: claimed in turn, again if the process dies, until delivered or given up."""

import re

import pytest
import sqlalchemy as sa
from store_calls import claim_one, new_key, submit

from hidream.errors import PromptRefused
from hidream.store import history, outbox, predictions
from hidream.store.outbox import DeliveryState, _round_robin
from hidream.store.schema import DELIVERIES as D


async def owed(database, clock, count=1):
    """Tasks of one key that have ended a second apart, and the key."""
    key = await new_key(database)
    ended = []
    for _ in range(count):
        ended.append(await submit(database, key, webhook="https://hook", refusal=PromptRefused("no")))
        clock.now += 1
    return key, ended


async def test_every_way_to_end_owes_one_and_only_if_one_was_asked_for(database, clock):
    key = await new_key(database)
    for hook in ("https://hook", ""):
        refused = await submit(database, key, webhook=hook, refusal=PromptRefused("no"))
        completed, failed, cancelled, lost = [await submit(database, key, webhook=hook) for _ in range(4)]
        await predictions.complete(database, await claim_one(database), [False], 1)
        await predictions.fail(database, await claim_one(database), 1405, "no")
        await predictions.cancel(database, (await claim_one(database)).id, key.id)
        await claim_one(database, "dead")
        await predictions.recover(database, 1, "dead")
        for prediction in (refused, completed, failed, cancelled, lost):
            found = await outbox.list_deliveries(database, prediction.id, key.id)
            assert [(d.url, d.state, d.attempts) for d in found] == [(hook, DeliveryState.WAITING, 0)] * bool(hook)


async def test_the_most_overdue_is_claimed_first_and_is_due_again_when_its_carrier_dies(database, clock):
    _, ended = await owed(database, clock, 5)
    first = await outbox.claim(database, 4, 30)  # one key gets half of the places
    assert [d.prediction_id for d in first] == [prediction.id for prediction in ended[:2]]
    assert [d.attempts for d in first] == [1, 1]
    assert [d.prediction_id for d in await outbox.claim(database, 9, 30)] == [p.id for p in ended[2:]]
    assert await outbox.claim(database, 9, 30) == []
    assert await outbox.next_due_ms(database) == first[0].due_ms == database.now_ms() + 30_000
    clock.now += 30
    again = await outbox.claim(database, 9, 30)
    assert {d.id: d.attempts for d in again}.items() >= {d.id: 2 for d in first}.items()
    assert not await outbox.record_attempt(database, first[0], DeliveryState.DELIVERED, 200, "")


async def test_what_became_of_it_is_written_down(database, clock):
    key, (task,) = await owed(database, clock)
    (first,) = await outbox.claim(database, 1, 30)
    assert await outbox.record_attempt(database, first, DeliveryState.WAITING, 500, "HTTP 500", again_in_s=60)
    (row,) = await outbox.list_deliveries(database, task.id, key.id)
    assert (row.state, row.status_code, row.error, row.finished_ms) == (
        DeliveryState.WAITING,
        500,
        "HTTP 500",
        None,
    )
    assert await outbox.claim(database, 1, 30) == []
    clock.now += 60
    (second,) = await outbox.claim(database, 1, 30)
    assert await outbox.record_attempt(database, second, DeliveryState.DELIVERED, 200, "")
    assert not await outbox.record_attempt(database, second, DeliveryState.GIVEN_UP, 500, "")
    (row,) = await outbox.list_deliveries(database, task.id, key.id)
    assert (row.id, row.state, row.attempts, row.status_code, row.error) == (
        first.id,
        DeliveryState.DELIVERED,
        2,
        200,
        "",
    )
    assert row.finished_ms == database.now_ms()
    assert await outbox.next_due_ms(database) is None
    assert await outbox.list_deliveries(database, task.id, (await new_key(database)).id) == []


async def test_of_those_that_are_claimed_together_only_the_settled_one_is_settled(database, clock):
    key, tasks = await owed(database, clock, 3)
    first, second, third = await outbox.claim(database, 6, 30)
    assert await outbox.record_attempt(database, first, DeliveryState.DELIVERED, 200, "")
    await outbox.postpone(database, [second], 5)
    rows = [(await outbox.list_deliveries(database, task.id, key.id))[0] for task in tasks]
    assert [row.state for row in rows] == [DeliveryState.DELIVERED, DeliveryState.WAITING, DeliveryState.WAITING]
    assert [row.attempts for row in rows] == [1, 0, 1]
    assert rows[2] == third
    clock.now += 30
    assert {d.id for d in await outbox.claim(database, 6, 30)} == {second.id, third.id}


async def test_a_delivery_is_replayed_as_its_own_tasks_only(database, clock):
    key, (task, other) = await owed(database, clock, 2)
    for _ in range(2):
        for delivery in await outbox.claim(database, 4, 30):
            assert await outbox.record_attempt(database, delivery, DeliveryState.DELIVERED, 200, "")
    (mine,) = await outbox.list_deliveries(database, task.id, key.id)
    assert not await outbox.replay(database, mine.id, other.id, key.id)
    assert await outbox.next_due_ms(database) is None


async def test_a_replayed_one_begins_anew_and_is_fenced_from_its_past(database, clock):
    key, (task,) = await owed(database, clock)
    (old,) = await outbox.claim(database, 1, 30)
    clock.now += 1
    assert not await outbox.replay(database, old.id, task.id, (await new_key(database)).id)
    assert not await outbox.replay(database, "none", task.id, key.id)
    assert await outbox.replay(database, old.id, task.id, key.id)
    (new,) = await outbox.claim(database, 1, 30)
    assert (new.id, new.attempts) == (old.id, 1)
    assert not await outbox.record_attempt(database, old, DeliveryState.GIVEN_UP, 500, "late")
    assert await outbox.record_attempt(database, new, DeliveryState.DELIVERED, 200, "")
    assert await outbox.replay(database, old.id, task.id, key.id)
    assert [d.id for d in await outbox.claim(database, 1, 30)] == [old.id]


async def test_its_task_is_found_whosever_it_is_until_it_is_deleted(database, clock):
    key, (task,) = await owed(database, clock)
    assert await history.get_for_webhook(database, task.id) == task
    await predictions.delete(database, [task.id], key.id)
    assert await history.get_for_webhook(database, task.id) is None


def test_places_are_handed_out_in_turns_and_one_is_left_for_who_has_none():
    many = [f"a{i}" for i in range(50)]
    assert _round_robin({"a": many}, {}, 32) == many[:16]
    assert _round_robin({"a": many}, {"a": 16}, 16) == []
    assert _round_robin({"a": many, "b": ["b0"]}, {"a": 16}, 16) == ["b0"]
    assert _round_robin({"a": many, "b": ["b0", "b1"]}, {}, 9) == ["a0", "b0", "a1", "b1", "a2", "a3"]
    assert _round_robin({"a": ["a0"], "b": ["b0"]}, {"a": 3}, 1) == ["b0"]
    assert _round_robin({"a": ["a0"], "b": ["b0"]}, {"a": 1, "b": 1}, 1) == []


async def test_a_key_with_many_holds_up_nobody_and_what_is_full_is_passed_over(database, clock):
    many, _ = await owed(database, clock, 20)
    few, (late,) = await owed(database, clock)
    held = {many.id: 5}
    claimed = await outbox.claim(database, 5, 30, held)
    assert [d.key_id for d in claimed] == [few.id]
    assert claimed[0].prediction_id == late.id
    assert await outbox.claim(database, 5, 30, held) == []
    due_ms = await outbox.next_due_ms(database, 5, held)
    assert due_ms == claimed[0].due_ms  # not the overdue ones of the key that may have no more
    assert await outbox.next_due_ms(database) < database.now_ms()
    assert [d.key_id for d in await outbox.claim(database, 7, 30, held)] == [many.id]


async def test_rows_of_older_processes_are_one_key(database, clock):
    await owed(database, clock, 4)
    async with database.write() as connection:
        await connection.execute(sa.update(D).values(key_id=""))
    await owed(database, clock, 4)
    assert [bool(d.key_id) for d in await outbox.claim(database, 6, 30)] == [False, True, False, True]


CLAIMS = 7
"""Enough for PostgreSQL to have chosen the plans that it uses for any parameters (PREPARE)."""
STEPS_MAX, ROWS_MAX = 30_000, 1_000
"""Of a claim and of the question when the next one is due: 12,757 steps; 411 rows, which is 4 for each of 102 keys."""
ROWS_READ = sa.text(
    "SELECT (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'deliveries')"
    " + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'deliveries')"
)


@pytest.mark.parametrize("analyzed", [False, True])
async def test_with_100_000_owed_a_claim_reads_few_rows(database, clock, analyzed):
    """One key is owed them all, ten thousand wait of a hundred others, and one is due of the last."""

    key, _ = await owed(database, clock)
    await copies(database, 100_000, lambda n: sa.literal(key.id), lambda n: D.c.due_ms)
    await copies(
        database, 10_000, lambda n: sa.literal("other ") + sa.cast(n % 100, sa.String), lambda n: D.c.due_ms + 10**9
    )
    last, _ = await owed(database, clock)
    if analyzed:
        is_sqlite = database._backend.one_writer
        async with database._backend.reader.connect() as connection:
            await connection.exec_driver_sql("ANALYZE" if is_sqlite else "VACUUM ANALYZE deliveries")
    plans, work = await listening(database), await counting(database)
    held, before = {key.id: 16}, await work()
    for _ in range(CLAIMS):
        found = await outbox.claim(database, 16, 0, held)
        await outbox.next_due_ms(database, 16, held)
        assert [d.key_id for d in found] == [last.id]
    done = (await work() - before) / CLAIMS
    assert 0 < done < (STEPS_MAX if database._backend.one_writer else ROWS_MAX)
    for statement, plan in await plans():
        assert not re.search("SCAN deliveries|Seq Scan on deliveries", plan), (statement, plan)


async def copies(database, count, key_id, due_ms):
    """Copy the first row of the table."""
    n = sa.select(sa.literal(1).label("n")).cte("numbers", recursive=True)
    n = n.union_all(sa.select(n.c.n + 1).where(n.c.n < count))
    first = sa.select(sa.func.min(D.c.created_ms)).scalar_subquery()
    new = {"id": sa.func.substr(D.c.id, 1, 10) + sa.cast(count + n.c.n, sa.String)}
    new |= {"key_id": key_id(n.c.n), "due_ms": due_ms(n.c.n)}
    copied = sa.select(*(new.get(column.name, column) for column in D.columns)).select_from(sa.join(D, n, sa.true()))
    async with database.write() as connection:
        await connection.execute(
            sa.insert(D).from_select(
                [column.name for column in D.columns],
                copied.where(D.c.created_ms == first, sa.func.length(D.c.id) == 32),
            )
        )


async def listening(database):
    """Explain, when asked to, all that was said to the database of deliveries."""
    said = {}

    def hear(_connection, _cursor, statement, parameters, *_):
        if re.match("SELECT|UPDATE|WITH", statement) and "deliveries" in statement:
            said[statement] = parameters

    for engine in (database._backend.writer.sync_engine, database._backend.reader.sync_engine):
        sa.event.listen(engine, "before_cursor_execute", hear)

    async def plans():
        how = "EXPLAIN QUERY PLAN " if database._backend.one_writer else "EXPLAIN "
        found = []
        async with database.read() as connection:
            for statement, parameters in dict(said).items():
                rows = await connection.exec_driver_sql(how + statement, parameters)
                found.append((statement, "\n".join(str(row[-1]) for row in rows)))
        return found

    return plans


async def counting(database):
    """Count what the database does: a function that returns the steps of SQLite's machine, or the rows read, so far."""
    engines, steps = (database._backend.writer, database._backend.reader), 0

    def step():
        nonlocal steps
        steps += 1

    async def steps_so_far():
        return steps

    async def rows_so_far():
        for engine in engines:  # each has one connection, as one statement follows the other
            async with engine.connect() as connection:
                await connection.execute(sa.text("SELECT pg_stat_force_next_flush()"))
                await connection.commit()
        async with database.read() as connection:
            return (await connection.execute(ROWS_READ)).scalar()

    if not database._backend.one_writer:
        return rows_so_far
    for engine in engines:
        async with engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            await driver.set_progress_handler(step, 1)
    return steps_so_far
