"""Old data is deleted: files first, then the rows, and what belongs to them."""

import sqlalchemy as sa
from store_calls import claim_one, new_key, submit

from hidream.store import history, predictions, retention, uploads
from hidream.store.admission import DAY_MS, IdempotencyRecord
from hidream.store.schema import METADATA
from hidream.store.uploads import Upload
from hidream.types import Step


async def counts(database):
    async with database.read() as connection:
        rows = {table.name: sa.select(sa.func.count()).select_from(table) for table in METADATA.sorted_tables}
        return {name: (await connection.execute(count)).scalar() for name, count in rows.items()}


async def test_what_is_old_and_finished_is_deleted(database, clock):
    key = await new_key(database)
    old, waiting = await submit(database, key), await submit(database, key)
    await predictions.cancel(database, old.id, key.id)
    clock.now += 10
    young = await submit(database, key)
    await predictions.cancel(database, young.id, key.id)
    assert await retention.expire(database, young.created_ms) == 1
    assert await retention.expire(database, young.created_ms) == 0
    found = [await history.get(database, p.id, key.id) for p in (old, waiting, young)]
    assert [bool(prediction) for prediction in found] == [False, True, True]


async def test_of_what_is_deleted_nothing_remains_after_a_day(database, clock):
    key = await new_key(database)
    prediction = await submit(database, key, webhook="https://hook", idempotency=IdempotencyRecord("once", "hash"))
    task = await claim_one(database)
    await predictions.report(database, "w1", {(task.id, 1): Step(1, 2, b"jpeg")})
    await predictions.complete(database, task, [False], 1)
    assert (await retention.purgeable(database, 0)).predictions == []
    await predictions.delete(database, [prediction.id], key.id)
    remains = await retention.purgeable(database, 0)
    assert remains.output_names == [prediction.output_name]
    assert await retention.purgeable(database, 0) == remains, "as long as nobody says that the files are gone"
    await retention.purge(database, remains)
    assert (await retention.purgeable(database, 0)).predictions == []
    assert (await submit(database, key, idempotency=IdempotencyRecord("once", "hash"))).id == prediction.id, (
        "it is remembered"
    )
    clock.now += DAY_MS / 1000
    remains = await retention.purgeable(database, 0)
    assert ([p.id for p in remains.predictions], remains.output_names) == ([prediction.id], [])
    await retention.purge(database, remains)
    left = await counts(database)
    assert [left[name] for name in ("predictions", "deliveries", "previews", "repeats")] == [0] * 4


async def test_forgetting_is_not_deleting(database, clock):
    key = await new_key(database)
    prediction = await submit(database, key)
    await predictions.cancel(database, prediction.id, key.id)
    kept = await history.get(database, prediction.id, key.id)
    clock.now += DAY_MS / 1000
    await retention.purge(database, retention.Purgeable([kept], []))
    assert await history.get(database, prediction.id, key.id) == kept


async def test_old_uploads_are_named_and_forgotten(database):
    key = await new_key(database)
    for name, created_ms in (("old", 1), ("new", 2)):
        await uploads.create(database, Upload(name, key.id, "a.png", "image/png", 3, created_ms, stored=True))
    remains = await retention.purgeable(database, uploads_older_than_ms=2)
    assert remains.uploads == ["old"]
    await retention.purge(database, remains)
    assert await uploads.get(database, "old") is None
    assert await uploads.get(database, "new")
