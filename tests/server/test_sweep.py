"""The sweep: deletes what is old, deleted or orphaned, files before rows, and nothing else."""

import asyncio
import os
import time
from dataclasses import replace

import pytest

from fakes import AwayAtFirst
from hidream.file_names import first_of, random_name
from hidream.outputs.object_store import Namespace
from hidream.server.background import loops, sweep
from hidream.server.background.sweep import Sweep
from hidream.store import history, predictions, uploads
from hidream.store.uploads import Upload
from hidream.types import ImageFormat, Status

DAY_S = 24 * 3600


def at(api, seconds):
    """Let the database's clock stand so far from now."""
    api.database._clock = lambda: time.time() + seconds


async def drawn(api, **body):
    data = (await api.submit(prompt="a house", **body)).json()["data"]
    task = await api.draw()
    return data, task


def files(api):
    return sorted(path.name for path in (api.settings.home / "outputs").iterdir() if path.is_file())


async def test_what_is_old_goes_and_the_rest_stays(api):
    at(api, -8 * DAY_S)
    _, old = await drawn(api, num_images=3)
    await api.submit(prompt="is not finished")
    unfinished = await api.claim()
    at(api, -6 * DAY_S)
    _, young = await drawn(api)
    at(api, 0)
    assert await Sweep(api.service).once() == 1
    assert files(api) == sorted(young.output_names)
    assert await history.get(api.database, old.id, old.key_id) is None
    assert (await history.get(api.database, young.id, young.key_id)).status is Status.COMPLETED
    assert (await history.get(api.database, unfinished.id, young.key_id)).status is Status.PROCESSING
    assert await Sweep(api.service).once() == 0


async def test_what_a_client_deletes_goes_even_where_all_is_kept(api):
    data, task = await drawn(api)
    keeping = replace(api.service, settings=replace(api.settings, store=replace(api.settings.store, retention_days=0)))
    at(api, 1000 * DAY_S)
    assert await Sweep(keeping).once() == 0
    assert await predictions.delete(api.database, [data["id"]], task.key_id)
    assert files(api) == [task.output_name]
    assert await Sweep(keeping).once() == 1
    assert files(api) == []


async def test_uploads_go_too(api):
    _, task = await drawn(api)
    name = random_name(ImageFormat.PNG)
    await api.service.uploads.write(name, b"image")
    await uploads.create(api.database, Upload(name, task.key_id, "a.png", "image/png", 7, api.database.now_ms(), True))
    await Sweep(api.service).once()
    assert await api.service.uploads.read(name) == b"image"
    at(api, 8 * DAY_S)
    await Sweep(api.service).once()
    assert await uploads.get(api.database, name) is None
    assert not list((api.settings.home / "uploads").glob("*.png"))


async def test_uploads_that_were_used_are_kept_for_ever_where_all_is(api, make_image):
    ticket = (await api.post("/api/v3/media/uploads", filename="a.png", size=len(make_image()))).json()["data"]
    assert (await api.client.put(ticket["upload"]["url"], content=make_image())).status_code == 200
    await drawn(api, image=ticket["download_url"])
    settings = replace(api.settings, store=replace(api.settings.store, retention_days=0))
    at(api, 1000 * DAY_S)
    await Sweep(replace(api.service, settings=settings)).once()
    name = ticket["download_url"].rpartition("/")[2]
    assert await api.service.uploads.read(name) == make_image()
    assert await uploads.get(api.database, name) is not None


async def test_an_upload_that_nothing_has_used_goes_within_the_hour(api, make_image):
    kept, given_up, announced = [
        (await api.post("/api/v3/media/uploads", filename="a.png", size=len(make_image()))).json()["data"]
        for _ in range(3)
    ]
    for ticket in (kept, given_up):
        assert (await api.client.put(ticket["upload"]["url"], content=make_image())).status_code == 200
    await api.submit(prompt="a house", image=kept["download_url"])
    at(api, 3590)
    await Sweep(api.service).once()
    assert (await api.client.get(given_up["download_url"])).status_code == 200
    at(api, 3610)
    await Sweep(api.service).once()
    answers = [await api.client.get(ticket["download_url"]) for ticket in (kept, given_up, announced)]
    assert [answer.status_code for answer in answers] == [200, 404, 404]
    for ticket in (given_up, announced):
        assert (await api.client.put(ticket["upload"]["url"], content=make_image())).status_code == 404
    assert (await api.draw()).input.image == kept["download_url"].rpartition("/")[2]


async def test_files_that_nobody_knows_go_when_they_are_old(api):
    _, task = await drawn(api, num_images=2)
    orphan, new = random_name(ImageFormat.JPEG), random_name(ImageFormat.JPEG)
    for name in (orphan, new):
        await api.service.outputs.write(name, b"nobody's")
    for name in (orphan, *task.output_names):
        os.utime(api.settings.home / "outputs" / name, (time.time() - 2 * DAY_S,) * 2)
    assert await Sweep(api.service).orphans() == 1
    assert files(api) == sorted([new, *task.output_names])


async def test_files_that_nobody_knows_go_without_being_asked(monkeypatch, open_api):
    monkeypatch.setattr(sweep, "EVERY_S", 0.01)

    async with open_api() as api:
        _, task = await drawn(api)
        orphan = random_name(ImageFormat.JPEG)
        await api.service.outputs.write(orphan, b"nobody's")
        os.utime(api.settings.home / "outputs" / orphan, (time.time() - 2 * DAY_S,) * 2)
        running = asyncio.create_task(Sweep(api.service).run())
        async with asyncio.timeout(20):
            while files(api) != [task.output_name]:
                await asyncio.sleep(0.01)
        api.database.changes.stop()
        await running


@pytest.mark.parametrize(("suffix", "first"), [("", True), ("-1", True), ("-3", True), ("-x", False), ("_1", False)])
def test_a_tasks_files_lead_to_its_first(suffix, first):
    name = random_name(ImageFormat.PNG)
    of_task = name.replace(".", f"{suffix}.")
    assert first_of(of_task) == (name if first else of_task)


async def test_a_store_that_is_away_leaves_the_rows(monkeypatch, caplog, open_api):
    monkeypatch.setattr(sweep, "EVERY_S", 0.05)

    async with open_api() as api:
        data, task = await drawn(api)
        assert await predictions.delete(api.database, [data["id"]], task.key_id)
        AwayAtFirst.times = 2
        place = AwayAtFirst(api.settings.home, Namespace.OUTPUTS)
        running = asyncio.create_task(Sweep(replace(api.service, outputs=place)).run())
        async with asyncio.timeout(20):
            while files(api):
                await asyncio.sleep(0.01)
        api.database.changes.stop()
        await running
        assert caplog.text.count("sweep_failed error=away") == 2


async def test_a_loop_that_raises_is_begun_anew(monkeypatch, caplog, open_api):
    monkeypatch.setattr(loops, "RESTART_S", 0.01)

    async with open_api() as api:
        runs = []

        async def loop():
            runs.append(1)
            if len(runs) == 3:
                api.database.changes.stop()
            raise RuntimeError("a fault of ours")

        async with asyncio.timeout(10):
            await loops._run_loop("test", loop, api.service)
        assert len(runs) == 3
        assert "loop_raised name=test" in caplog.text


async def test_the_loops_end_with_the_process(api):
    running = asyncio.create_task(loops.run(api.service))
    await asyncio.sleep(0.2)
    assert not running.done()
    api.database.changes.stop()
    async with asyncio.timeout(10):
        await running
