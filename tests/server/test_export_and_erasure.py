"""All data of a key: exported, and erased; other keys are not affected."""

import asyncio
import dataclasses
import json
import stat
import zipfile

import pytest
import sqlalchemy as sa

from hidream.errors import DatabaseUnavailable, InvalidInput, NotFound, ObjectStoreUnavailable
from hidream.outputs.location import open_object_store
from hidream.request import ImageRequest
from hidream.server import erasure
from hidream.server.background import sweep
from hidream.server.erasure import erase
from hidream.server.export import export
from hidream.store import audit_log, key_data, keys, predictions
from hidream.store.admission import NewTask
from hidream.store.schema import (
    DELIVERIES,
    IDEMPOTENCY_RECORDS,
    KEYS,
    METADATA,
    PREDICTIONS,
    PREVIEWS,
    UPLOADS,
    VIRTUAL_STARTS,
)
from hidream.types import MODELS, ImageFormat, Size, Step
from s3_server import S3Server

HOOK = "?webhook=https%3A%2F%2Fexample.com%2Fhook"


async def used(api, make_image):
    """Use a key for all that leaves something behind: a finished task of two images, one that is drawn, an upload."""
    (key,) = [key for key in await keys.list_keys(api.database) if key.name == "test"]
    done = await api.submit(query=HOOK, headers={"Idempotency-Key": "once"}, prompt="Ada's ein Füchslein", num_images=2)
    await api.draw()
    failed = await api.submit(prompt="another")
    await api.fail(1405, "no")
    form = {"file": ("mine.png", make_image(), "image/png")}
    upload = await api.client.post("/api/v3/media/upload/binary", files=form, headers=api.bearer)
    drawn = await api.submit(prompt="a third")
    task = await api.claim()
    await predictions.report(api.database, "host:1", {(task.id, task.attempt): Step(1, 2, b"a preview")})
    waiting = await api.submit(prompt="a fourth")
    for answer in (done, failed, upload, drawn, waiting):
        assert answer.status_code == 200, answer.text
    return key, task


def read(path):
    """Give the files of a folder or a ZIP file by their names."""
    if path.is_dir():
        return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


async def exported(api, key, out):
    await export(api.database, api.service.outputs, api.service.uploads, key.id, out, "me@here")
    return read(out)


@pytest.mark.parametrize("name", ["all.zip", "all"])
async def test_an_export_has_all_that_is_kept_of_a_key_and_nothing_of_another(api, make_image, tmp_path, name):
    key, _ = await used(api, make_image)
    secret = (await api.get("/api/v3/webhook/secret")).json()["data"]["secret"]
    other = await api.client.post(
        "/api/v3/wavespeed-ai/hidream-i1-dev", json={"prompt": "not yours"}, headers=await api.key()
    )
    assert other.status_code == 200
    files = await exported(api, key, tmp_path / name)
    rows = {
        name: [json.loads(line) for line in files[f"{name}.jsonl"].splitlines()]
        for name in key_data.KEY_TABLES
        if name != "previews"
    }
    assert [row["input"]["prompt"] for row in rows["predictions"]] == [
        "Ada's ein Füchslein",
        "another",
        "a third",
        "a fourth",
    ]
    assert [row["url"] for row in rows["deliveries"]] == ["https://example.com/hook"]
    assert [row["idempotency_key"] for row in rows["idempotency_keys"]] == ["once"]
    assert [row["filename"] for row in rows["uploads"]] == ["mine.png"]
    assert [row["act"] for row in rows["acts"]] == ["keys create", "keys export"]
    told = json.loads(files["key.json"])
    assert (told["id"], told["name"], told["scopes"]) == (key.id, "test", "read,submit")
    assert told["turn"] > 0
    outputs = [data for path, data in files.items() if path.startswith("outputs/")]
    assert outputs == [b"the image"] * 2
    assert files[f"uploads/{rows['uploads'][0]['name']}"] == make_image()
    assert files[f"previews/{rows['predictions'][2]['id']}.jpg"] == b"a preview"
    assert "missing.json" not in files
    everything = b"".join(files.values())
    for private in (b"not yours", api.secret.encode(), secret.encode(), keys.digest_of(api.secret, "").encode()):
        assert private not in everything
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o077 == 0


async def test_what_lies_in_a_bucket_is_written_out_and_erased(open_api, make_image, tmp_path):
    with S3Server(tmp_path / "s3") as s3:
        async with open_api() as api:
            places = [open_object_store(s3.url("x"), namespace, s3.access()) for namespace in ("outputs", "uploads")]
            api.service = dataclasses.replace(api.service, outputs=places[0], uploads=places[1])
            api.service.input_images._store = places[1]
            key, _ = await used(api, make_image)
            files = await exported(api, key, tmp_path / "all.zip")
            assert [data for path, data in files.items() if path.startswith("outputs/")] == [b"the image"] * 2
            assert [data for path, data in files.items() if path.startswith("uploads/")] == [make_image()]
            await erase(api.database, *places, key.id, "me@here", known_s=0)
            assert [path for path in s3.objects.rglob("*") if path.is_file()] == []


async def test_an_export_goes_page_by_page_and_says_what_is_missing(make_image, tmp_path, monkeypatch, open_api):
    monkeypatch.setattr(key_data, "PAGE", 3)

    async with open_api() as api:
        for n in range(7):
            await api.submit(query=HOOK, prompt=f"house {n}")
            task = await api.draw()
        await api.service.outputs.delete([task.output_name])
        (key,) = await keys.list_keys(api.database)
        files = await exported(api, key, tmp_path / "all")
        assert files["predictions.jsonl"].count(b"\n") == files["deliveries.jsonl"].count(b"\n") == 7
        assert len([path for path in files if path.startswith("outputs/")]) == 6
        assert json.loads(files["missing.json"]) == {"missing": [f"outputs/{task.output_name}"]}


async def test_an_export_that_cannot_be_made_leaves_nothing(api, tmp_path):
    await api.submit(prompt="a house")
    await api.draw()
    (key,) = await keys.list_keys(api.database)
    service, out = api.service, tmp_path / "out.zip"
    with pytest.raises(NotFound, match="there is no key 'nobody'"):
        await export(api.database, service.outputs, service.uploads, "nobody", out, "me@here")
    out.write_bytes(b"mine")
    with pytest.raises(InvalidInput, match=r"out\.zip', which is there already"):
        await export(api.database, service.outputs, service.uploads, key.id, out, "me@here")
    assert out.read_bytes() == b"mine"
    for name in ("new.zip", "new"):
        with pytest.raises(ObjectStoreUnavailable):
            await export(api.database, Away(service.outputs), service.uploads, key.id, tmp_path / name, "me@here")
    assert not list(tmp_path.glob("new*"))
    assert [act.act for act in await audit_log.entries(api.database)].count("keys export") == 2  # what was begun


class Away:
    """A place of which nothing can be had after some calls."""

    def __init__(self, place, calls=0):
        self.place, self.calls = place, calls

    def __getattr__(self, name):
        self.calls -= 1
        if self.calls < 0:
            raise ObjectStoreUnavailable("away")
        return getattr(self.place, name)


async def left(api, key):
    """How much is left in each table of a key."""
    counts = {}
    async with api.database.read() as connection:
        mine = sa.select(PREDICTIONS.c.id).where(PREDICTIONS.c.key_id == key.id)
        for table in (PREDICTIONS, IDEMPOTENCY_RECORDS, VIRTUAL_STARTS, UPLOADS, DELIVERIES, PREVIEWS):
            owned = table.c.key_id == key.id if "key_id" in table.c else table.c.prediction_id.in_(mine)
            counts[table.name] = (await connection.execute(sa.select(sa.func.count()).where(owned))).scalar_one()
    return {name: count for name, count in counts.items() if count}


async def test_an_erasure_leaves_nothing_but_that_the_key_was_there(api, make_image, tmp_path):
    key, task = await used(api, make_image)
    await api.get("/api/v3/webhook/secret")
    bearer = await api.key()
    other = await api.client.post("/api/v3/wavespeed-ai/hidream-i1-dev", json={"prompt": "hers"}, headers=bearer)
    service = api.service
    erased = await erase(api.database, service.outputs, service.uploads, key.id, "me@here", known_s=0)
    assert erased == {"predictions": 4, "uploads": 1}
    assert await left(api, key) == {}
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".png", ".jpeg")] == []
    async with api.database.read() as connection:
        for table in METADATA.sorted_tables:
            rows = str((await connection.execute(sa.select(table))).all())
            assert "Ada" not in rows
            assert "example.com" not in rows
            assert "mine.png" not in rows
        row = (await connection.execute(sa.select(KEYS).where(KEYS.c.id == key.id))).one()
        assert (row.name, row.webhook_secret, row.webhook_secret_before) == ("", "", "")
    assert await keys.find(api.database, api.secret) is None
    await keys.register(api.database, "HIDREAM_API_KEY", api.secret)
    assert await keys.find(api.database, api.secret) is None, "what was erased is not registered again"
    assert (await api.client.get(other.json()["data"]["urls"]["get"], headers=bearer)).status_code == 200
    # a worker that draws on
    await service.outputs.write(task.output_name, b"late")
    assert not await predictions.complete(api.database, task, [False], 1)
    assert not await predictions.report(api.database, "host:1", {(task.id, task.attempt): Step(2, 2, b"x")})
    told = [(act.act, act.actor, act.details) for act in await audit_log.entries(api.database, subject=key.id)]
    assert ("keys erase", "me@here", {}) in told
    assert ("keys erased", "me@here", {"predictions": 4, "uploads": 1}) in told


async def test_an_erasure_that_broke_off_anywhere_is_finished_by_another(make_image, tmp_path, monkeypatch, open_api):
    monkeypatch.setattr(key_data, "PAGE", 1)

    async with open_api() as api:
        key, _ = await used(api, make_image)
        service = api.service
        for calls in range(3):
            with pytest.raises(ObjectStoreUnavailable):
                away = Away(service.outputs, calls)
                await erase(api.database, away, service.uploads, key.id, "me@here", known_s=0)
            assert await keys.find(api.database, api.secret) is None
        real = key_data.purge

        async def forget(*_):
            raise DatabaseUnavailable("away")

        monkeypatch.setattr(key_data, "purge", forget)
        with pytest.raises(DatabaseUnavailable):
            await erase(api.database, service.outputs, service.uploads, key.id, "me@here", known_s=0)
        monkeypatch.setattr(key_data, "purge", real)
        assert (await left(api, key))["predictions"]
        await erase(api.database, service.outputs, service.uploads, key.id, "me@here", known_s=0)
        assert await left(api, key) == {}
        assert not list(tmp_path.rglob("*.png"))


async def test_the_sweep_finishes_an_erasure_that_broke_off_and_erases_what_came_late(
    make_image, tmp_path, monkeypatch, api
):
    key, _ = await used(api, make_image)
    with pytest.raises(ObjectStoreUnavailable):
        await erase(api.database, Away(api.service.outputs), api.service.uploads, key.id, "me@here", known_s=0)
    await sweep.Sweep(api.service).once()
    assert (await left(api, key))["predictions"]  # somebody may be at it
    monkeypatch.setattr(key_data, "ERASING_MS", -1)
    await sweep.Sweep(api.service).once()
    assert await left(api, key) == {}
    late = ImageRequest("late", Size(256, 256), 7, False, True, False, ImageFormat.PNG)
    await api.service.enqueuer.submit(NewTask(key, next(iter(MODELS)), late))
    await sweep.Sweep(api.service).once()
    assert await left(api, key) == {}
    told = [act.actor for act in await audit_log.entries(api.database, subject=key.id) if act.act == "keys erased"]
    assert told == ["hidream", "hidream"]
    await sweep.Sweep(api.service).once()
    assert len([act for act in await audit_log.entries(api.database) if act.act == "keys erased"]) == 2


async def test_a_server_that_still_knows_the_key_lets_nothing_in_that_stays(monkeypatch, api):
    """A request that came in the second for which a key is remembered is erased too."""

    (key,) = await keys.list_keys(api.database)
    assert (await api.submit(prompt="before")).status_code == 200
    erasing = asyncio.create_task(
        erase(api.database, api.service.outputs, api.service.uploads, key.id, "me@here", erasure.KNOWN_S)
    )
    while (await keys.list_keys(api.database))[0].revoked_ms is None:
        await asyncio.sleep(0.005)
    assert (await api.submit(prompt="meanwhile")).status_code in (200, 401)
    await erasing
    assert (await api.submit(prompt="afterwards")).status_code == 401
    assert await left(api, key) == {}
