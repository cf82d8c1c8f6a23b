"""The worker's loop on a real store and real files: the outcome of a task, whatever happens while it runs."""

import asyncio
import io
import sys
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from painter import STEPS, Painter
from PIL import Image

from fakes import Clock, Flaky, Meanwhile, Slow
from hidream.errors import DatabaseUnavailable, InvalidInput
from hidream.file_names import random_name
from hidream.outputs.folder import Folder
from hidream.outputs.object_store import Namespace
from hidream.request import ImageRequest, LoraUse
from hidream.settings.tables import Worker as Limits
from hidream.store import claims, history, keys, predictions, progress, workers
from hidream.store.admission import NewTask
from hidream.store.claims import Capacity
from hidream.store.completion_waiter import CompletionWaiter
from hidream.store.database import Database
from hidream.store.enqueue import Enqueuer
from hidream.store.schema import PREDICTIONS
from hidream.store.workers import Worker
from hidream.types import SEED_MAX, Conformance, ImageFormat, Mode, Render, Sampler, Size, Status
from hidream.worker import loop as loop_file
from hidream.worker.bridge import Bridge
from hidream.worker.generation import Tools
from hidream.worker.loop import WorkerLoop
from image_files import progressive_jpeg, saved
from previews import preview

MODEL, FULL = "wavespeed-ai/hidream-i1-dev", "wavespeed-ai/hidream-i1-full"
ME = Worker("host:1", [MODEL, FULL], "v1, f1")
VERSIONS = {MODEL: dict.fromkeys(Mode, "v1") | {Mode.TURBO: "v1-turbo"}, FULL: dict.fromkeys(Mode, "f1")}
TOO_LARGE = "the size is too large for the available memory; accepted: a smaller size, or fewer images at a time"
ROOM = Capacity(1, 10**12, has_tasks=False)


class Studio:
    """A store with one key, and a loop beside it."""

    def __init__(self, database, key, painters, tools, limits):
        self.database = database
        self.key = key
        self.tools = tools
        self.enqueuer = Enqueuer(database, 100)
        self.stopping = asyncio.Event()
        self.bridge = Bridge()
        self.bridge.set_engines(painters)
        self.loop = WorkerLoop(database, self.bridge, ME, tools, limits)

    async def submit(self, seed=7, checker=True, output_format=ImageFormat.PNG, model=MODEL, key=None, **extras):
        asked = ImageRequest("a house", Size(64, 48), seed, False, checker, False, output_format, **extras)
        return await self.enqueuer.submit(NewTask(key or self.key, model, asked))

    async def end_of(self, prediction):
        return await CompletionWaiter(self.database).wait(prediction.id, prediction.key_id, 20)

    async def ends_of(self, predictions):
        return [await self.end_of(prediction) for prediction in predictions]

    async def now(self, prediction):
        return await history.get(self.database, prediction.id, prediction.key_id)

    async def images_of(self, prediction):
        return [Image.open(io.BytesIO(await self.tools.outputs.read(name))) for name in prediction.output_names]


@pytest.fixture
def studio(tmp_path, url, painter):
    @asynccontextmanager
    async def opened(flagged=lambda pixels: False, place=Folder, at=url, full=None, clock=time.time, **limits):
        outputs, uploads = place(tmp_path, Namespace.OUTPUTS), Folder(tmp_path, Namespace.UPLOADS)
        tools = Tools(flagged, outputs, uploads, VERSIONS)
        async with Flaky.open(at, clock) as database:
            key, _ = await keys.create(database, "test")
            studio = Studio(database, key, {MODEL: painter, FULL: full or painter}, tools, Limits(**limits))
            async with asyncio.TaskGroup() as group:
                running = group.create_task(studio.loop.run(studio.stopping))
                yield studio
                painter.go_on.set()
                studio.stopping.set()
                await asyncio.wait_for(running, 20)

    return opened


async def test_a_task_becomes_a_file_and_then_a_completed_row(studio):
    async with studio() as s:
        done = await s.end_of(await s.submit())
        assert (done.status, done.nsfw, done.inference_ms, done.version) == ("completed", (False,), 600, "v1")
        assert (done.step, done.steps) in ((0, 0), (STEPS, STEPS)), "it may be done before it was reported"
        (image,) = await s.images_of(done)
        assert image.size == (64, 48)
        assert image.text == {"Software": "hidream", "seed": "7", "version": "v1"}
        assert np.asarray(image).min() == np.asarray(image).max() == 7


EXTRAS = {"negative_prompt": "fog", "shift": 2.0, "sampler": Sampler.EULER, "conformance": Conformance.OFFICIAL}
EXTRAS |= {"render": Render.NATIVE, "mode": Mode.BALANCED, "loras": (LoraUse("ink", 0.5), LoraUse("water"))}


@pytest.mark.integration
async def test_all_that_was_asked_reaches_the_model_every_time(studio, painter, until):
    """The image and the mask as pixels of the size that is needed; of the files themselves nothing."""
    files = {"image": saved(Image.new("RGB", (128, 96), (200, 60, 40))), "mask": saved(Image.new("L", (128, 96), 255))}
    there = {"image": b"", "mask": b"", "strength": 0.4}
    expected = ImageRequest("a house", Size(64, 48), 7, steps=3, guidance=4.5, **there, **EXTRAS)

    painter.go_on.clear()
    async with studio() as s:
        names = {field: random_name(ImageFormat.PNG) for field in ("image", "mask")}
        for field, name in names.items():
            await s.tools.uploads.write(name, files[field])
        submitted = await s.submit(steps=3, guidance=4.5, strength=0.4, **names, **EXTRAS)
        await until(painter.painting.is_set)
        await predictions.recover(s.database, 3, lost_worker_id=ME.id)  # as if this worker had died
        painter.go_on.set()
        assert (await s.end_of(submitted)).attempt == 2
    assert painter.requests == [expected, expected]
    for prepared in painter.prepared:
        planes = prepared.planes[Size(64, 48)]
        assert (planes.image.shape, planes.mask.shape, planes.mask.all()) == ((3, 48, 64), (1, 48, 64), True)
        assert np.abs((planes.image[:, 9, 9] + 1) * 127.5 - (200, 60, 40)).max() < 1e-3


@pytest.mark.integration
async def test_what_is_not_asked_is_left_to_the_variant(studio, painter):
    async with studio() as s:
        await s.end_of(await s.submit())
    assert painter.requests == [ImageRequest("a house", Size(64, 48), 7)]


@pytest.mark.parametrize("field", ["image", "mask"])
async def test_an_upload_that_is_gone_fails_its_task(studio, painter, field):
    async with studio() as s:
        names = {each: random_name(ImageFormat.PNG) for each in ("image", "mask")}
        for each in names.keys() - {field}:
            await s.tools.uploads.write(names[each], b"something")
        failed = await s.end_of(await s.submit(**names))
        assert (failed.status, failed.code) == (Status.FAILED, InvalidInput.code)
        assert failed.error.startswith(f"{field} is a file that does not exist, or no longer exists; accepted: ")
    assert not painter.requests


@pytest.mark.integration
async def test_an_image_that_is_slow_to_read_holds_no_other_task_up(studio, painter, until):
    """Nor does it keep a worker that is told to stop: reading it ends, and its task goes back to the queue."""

    async with studio(finish_s=0) as s:
        name = random_name(ImageFormat.JPEG)
        await s.tools.uploads.write(name, progressive_jpeg(8192, 32))
        slow = await s.submit(image=name)
        await until(lambda: s.loop._jobs)
        assert (await s.end_of(await s.submit())).status is Status.COMPLETED
        s.stopping.set()
        await until(lambda: not s.loop._jobs)
        assert (await s.now(slow)).status is Status.CREATED
    assert len(painter.requests) == 1


@pytest.mark.integration
async def test_the_quality_that_was_asked_is_the_files(studio):
    async with studio() as s:
        asked = [await s.submit(output_format=ImageFormat.JPEG, output_quality=each) for each in (None, 5)]
        ((usual,), (coarse,)) = [await s.images_of(done) for done in await s.ends_of(asked)]
        assert sum(usual.quantization[0]) < sum(coarse.quantization[0])


# --- several images of one task ------------------------------------------------------------------------------


async def test_each_image_has_its_seed_its_file_and_its_flag(studio, painter, until):
    painter.warnings = ("too long",)

    all_are_there = threading.Event()
    async with studio(lambda pixels: bool(pixels.max() == 9)) as s:
        held = asyncio.create_task(s.bridge.run(all_are_there.wait, asyncio.Event()))
        task = await s.submit(seed=8, num_images=3)
        await until(lambda: s.bridge._thread._work_queue.qsize() == 3)
        all_are_there.set()
        await held
        done = await s.end_of(task)
        assert (done.status, done.nsfw, done.inference_ms) == (Status.COMPLETED, (False, True, False), 1800)
        assert done.warnings == ("too long",)
        images_of = await s.images_of(done)
        assert [np.asarray(image).max() for image in images_of] == [8, 9, 10]
        assert [image.text["seed"] for image in images_of] == ["8", "9", "10"]
    assert painter.together[0] == {8, 9, 10}, "they are drawn side by side"


async def test_behind_the_last_seed_comes_the_first(studio, painter):
    async with studio() as s:
        assert (await s.end_of(await s.submit(seed=SEED_MAX, num_images=2))).status is Status.COMPLETED
    assert painter.seeds == [SEED_MAX, 0]


async def test_all_of_a_tasks_images_or_none(studio, painter, until):
    painter.bad[8] = InvalidInput("too odd")

    async with studio() as s:
        failed = await s.end_of(await s.submit(seed=7, num_images=3))
        assert (failed.status, failed.error) == (Status.FAILED, "too odd")
        assert not s.tools.outputs.path.exists()
        await until(lambda: not s.bridge.busy)
        assert not painter.here


async def test_when_one_image_fails_the_others_of_its_task_are_ended(studio, painter, until):
    painter.refused[8] = InvalidInput("too odd")
    painter.step = lambda: time.sleep(0.001) or []  # so that no other one ends by itself

    async with studio() as s:
        failed = await s.end_of(await s.submit(seed=7, num_images=3))
        assert (failed.status, failed.error) == (Status.FAILED, "too odd")
        await until(lambda: not s.bridge.busy)
        assert not painter.here


async def test_a_task_whose_end_the_store_does_not_take_is_suspected(studio, painter, until, caplog):
    painter.warnings = (object(),)  # which no column can hold

    async with studio() as s:
        submitted = await s.submit()
        await until(lambda: "task_raised" in caplog.text)
        async with asyncio.timeout(20):
            while not (task := await s.now(submitted)).workers_lost:
                await asyncio.sleep(0.01)
        assert task.status in (Status.CREATED, Status.PROCESSING, Status.FAILED)


@pytest.mark.parametrize("warnings", [(), ("too long", "left out from “am Meer” on")])
async def test_warnings_stand_in_the_row(studio, painter, warnings, caplog):
    painter.warnings = warnings

    async with studio() as s:
        assert (await s.end_of(await s.submit())).warnings == warnings
    assert "am Meer" not in caplog.text


async def test_the_classifiers_word_is_kept_and_not_asked_for_in_vain(studio):
    asked = []

    def flagged(pixels):
        asked.append(pixels.shape)
        return True

    async with studio(flagged) as s:
        assert (await s.end_of(await s.submit(checker=True))).nsfw == (True,)
        assert (await s.end_of(await s.submit(checker=False))).nsfw == (False,)
    assert asked == [(48, 64, 3)]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InvalidInput("too odd"), 1401, "too odd"),
        (ValueError("bug"), 1405, "the worker failed to generate this task; its log says why, under {}"),
        (RuntimeError("alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried"), 1405, TOO_LARGE),
        (MemoryError("Unable to allocate 25.2 GiB"), 1405, TOO_LARGE),
    ],
)
async def test_a_task_that_raises_fails_and_the_worker_goes_on(studio, painter, caplog, error, code, message):
    async with studio() as s:
        painter.bad[1], painter.refused[2] = error, error
        bad, refused, fine = await s.ends_of([await s.submit(seed=seed) for seed in (1, 2, 3)])
        for failed in (bad, refused):
            assert (failed.status, failed.code, failed.error) == (Status.FAILED, code, message.format(failed.id))
            assert code == 1401 or f"task_raised id={failed.id}" in caplog.text
        assert fine.status is Status.COMPLETED


async def test_a_task_for_which_there_was_no_memory_is_drawn_once_more_alone(studio, painter):
    class Once(dict):
        def __getitem__(self, seed):
            return self.pop(seed)

    painter.bad = Once({1: MemoryError("Unable to allocate 2.0 GiB")})
    async with studio() as s:
        task = await s.end_of(await s.submit(seed=1))
        assert (task.status, task.attempt, task.workers_lost) == (Status.COMPLETED, 2, 1)


async def test_told_to_stop_it_hands_all_tasks_back_at_once(studio, painter, until):
    painter.go_on.clear()
    async with studio(tasks_max=2) as s:
        drawn = [await s.submit(seed=seed) for seed in (1, 2)]
        await until(lambda: len(s.loop._jobs) == 2)
        await s.submit(seed=3)
        s.stopping.set()
        async with asyncio.timeout(20):
            while [(await s.now(each)).status for each in drawn] != [Status.CREATED] * 2:
                await asyncio.sleep(0.002)
        assert not painter.go_on.is_set(), "the model thread is still inside the step"
        assert {(await s.now(each)).workers_lost for each in drawn} == {0}, "they are not suspected"
    await until(lambda: not s.bridge.busy)
    assert 3 not in painter.seeds, "no further task was taken"
    assert not painter.here


async def test_told_to_stop_it_may_finish_what_it_draws(studio, painter, until):
    painter.go_on.clear()
    async with studio(finish_s=20, tasks_max=1) as s:
        drawn, waiting = await s.submit(seed=1), await s.submit(seed=2)
        await until(painter.painting.is_set)
        s.stopping.set()
        await asyncio.sleep(0.1)
        assert (await s.now(drawn)).status is Status.PROCESSING
        painter.go_on.set()
        await until(lambda: not s.loop._jobs)
        assert ((await s.now(drawn)).status, (await s.now(drawn)).attempt) == (Status.COMPLETED, 1)
        assert (await s.now(waiting)).status is Status.CREATED


async def test_told_to_stop_it_finishes_only_for_a_while(studio, painter, until):
    painter.go_on.clear()
    async with studio(finish_s=0.2) as s:
        drawn = await s.submit()
        await until(painter.painting.is_set)
        s.stopping.set()
        async with asyncio.timeout(20):
            while (await s.now(drawn)).status is not Status.CREATED:
                await asyncio.sleep(0.002)
        assert not painter.go_on.is_set()


async def test_a_lost_lease_ends_the_image_and_spoils_nothing(studio, painter, until):
    painter.go_on.clear()
    async with studio(lease_s=0.3, clock=Clock()) as s:
        prediction = await s.submit()
        await until(painter.painting.is_set)
        await predictions.recover(s.database, 3, lost_worker_id=ME.id)
        (other,) = await claims.claim(s.database, [MODEL], "host:2", {MODEL: {Mode.EXACT: "v2"}}, 60, ROOM)
        assert other.id == prediction.id
        await until(lambda: not s.loop._jobs)
        untouched = await s.now(prediction)
        assert (untouched.status, untouched.attempt, untouched.version) == (Status.PROCESSING, 2, "v2")


async def test_the_lease_is_renewed_while_an_image_takes_long(studio, painter, until):
    clock = Clock()

    async def left_ms(s):
        async with s.database.read() as connection:
            return await connection.scalar(sa.select(PREDICTIONS.c.lease_until_ms)) - s.database.now_ms()

    painter.go_on.clear()
    async with studio(lease_s=0.3, clock=clock) as s:
        prediction = await s.submit()
        await until(painter.painting.is_set)
        for _ in range(3):
            clock.now += 0.2
            async with asyncio.timeout(20):
                while await left_ms(s) < 300:
                    await asyncio.sleep(0.01)
        assert await predictions.recover(s.database, 3) == 0
        painter.go_on.set()
        assert (await s.end_of(prediction)).attempt == 1


async def test_what_another_worker_has_lost_is_drawn(studio, painter):
    async with studio(tasks_max=1) as s:
        painter.go_on.clear()
        blocking = await s.submit(seed=1)
        lost = await s.submit(seed=2)
        task = []
        while not task:  # whichever of the two the loop has left over
            task = await claims.claim(s.database, [MODEL], "host:2", {MODEL: {Mode.EXACT: "v0"}}, 0, ROOM)
        painter.go_on.set()
        for prediction in (blocking, lost):
            assert (await s.end_of(prediction)).version == "v1"
    assert sorted(painter.seeds) == [1, 2]


async def test_the_version_names_the_mode(studio):
    async with studio() as s:
        exact, turbo = await s.ends_of([await s.submit(), await s.submit(mode=Mode.TURBO)])
        assert (exact.version, turbo.version) == ("v1", "v1-turbo")
        assert (await s.images_of(turbo))[0].text["version"] == "v1-turbo"


async def test_several_models_are_drawn_by_one_worker(studio, painter):
    full = Painter()
    full.go_on.set()

    async with studio(full=full) as s:
        dev, other = await s.ends_of([await s.submit(seed=1), await s.submit(seed=2, model=FULL)])
        assert (dev.version, other.version) == ("v1", "f1")
    assert (painter.seeds, full.seeds) == ([1], [2])


# --- while it is drawn -----------------------------------------------------------------------------------------


async def test_a_task_that_is_cancelled_is_let_go_within_a_second(studio, painter, until):
    painter.go_on.clear()
    async with studio(lease_s=600) as s:
        cancelled, other = [await s.submit(seed=seed, num_images=2) for seed in (1, 5)]
        await until(lambda: len(s.loop._jobs) == 2 and painter.painting.is_set())
        (job,) = (job for job in s.loop._jobs.values() if job.task.id == cancelled.id)
        look, looks = s.loop._report_progress, []
        s.loop._report_progress = lambda: looks.append(1) or look()
        assert await predictions.cancel(s.database, cancelled.id, s.key.id)
        looks.clear()
        await until(job.aborted.is_set)
        assert len(looks) <= 1, "the next look finds it"
        assert loop_file.PROGRESS_S < 1
        await until(lambda: len(s.loop._jobs) == 1)
        painter.go_on.set()
        assert (await s.end_of(other)).status is Status.COMPLETED
        done = await s.now(cancelled)
        assert (done.status, done.attempt) == (Status.CANCELLED, 1)
        await until(lambda: len(painter.aborted) == 2)


@pytest.mark.parametrize("end", ["cancel", "cancel and delete"])
async def test_files_of_a_task_that_is_cancelled_while_they_are_written_do_not_stay(studio, until, end, tmp_path):
    async with studio(place=Meanwhile, lease_s=600) as s:

        async def does():
            await predictions.cancel(s.database, task.id, s.key.id)
            if end != "cancel":
                await predictions.delete(s.database, [task.id], s.key.id)

        Meanwhile.does = does
        task = await s.submit(num_images=2)
        await until(lambda: s.loop._jobs)
        await until(lambda: not s.loop._jobs)
        assert not list((tmp_path / "outputs").glob("*.png"))


async def test_progress_is_written_down_and_previews_while_somebody_watches(studio, painter, until):
    may, step = threading.Semaphore(0), painter.step
    painter.step = lambda: step() if len(painter.here) == 2 and may.acquire(timeout=30) else []

    async with studio() as s:
        task, previews = await s.submit(seed=200, num_images=2), {}
        await until(lambda: len(painter.here) == 2)
        await progress.watch(s.database, [task.id], 60)
        assert ((await s.now(task)).step, (await s.now(task)).steps) == (0, 0)
        for done in range(1, STEPS):
            may.release()
            async with asyncio.timeout(20):
                while ((now := await s.now(task)).step, now.steps) != (done, STEPS):
                    await asyncio.sleep(0.01)
            if seen := await preview(s.database, task.id):
                previews[seen.step] = seen.image
        may.release()
        await s.end_of(task)
        assert previews.keys() <= set(range(1, STEPS))
        for jpeg in previews.values():
            image = Image.open(io.BytesIO(jpeg))
            assert (image.format, image.size) == ("JPEG", (200, 10))
            assert abs(int(np.asarray(image).mean()) - 200) <= 1
        assert previews
        assert await preview(s.database, task.id) is None, "it has ended"


async def test_nobody_watches_so_no_previews_are_drawn(studio, painter):
    painter.pace_s = 1.5 * loop_file.PROGRESS_S

    async with studio() as s:
        task = await s.submit()
        while not (await s.now(task)).status.final:
            assert await preview(s.database, task.id) is None
            await asyncio.sleep(0.01)


# --- database and bucket are away ------------------------------------------------------------------------------


async def test_while_the_database_is_away_drawings_go_on_and_nothing_is_drawn_twice(studio, painter, until, caplog):
    clock = Clock()

    painter.go_on.clear()
    async with studio(lease_s=30, clock=clock) as s:
        tasks = [await s.submit(seed=seed) for seed in (1, 2)]
        await until(lambda: len(s.loop._jobs) == 2 and painter.painting.is_set())
        s.database.away = True
        painter.go_on.set()
        says = "unavailable what=record_outcome"
        await until(lambda: caplog.text.count(says) >= 2 and s.loop._unavailable_at > 0)
        clock.now += 31  # the leases have ended
        assert len(s.loop._jobs) == 2, "what they are is known here only"
        s.database.away = False
        done = await s.ends_of(tasks)
        assert [(each.status, each.attempt) for each in done] == [(Status.COMPLETED, 1)] * 2
        assert (await s.end_of(await s.submit(seed=3))).status is Status.COMPLETED
    assert painter.seeds == [1, 2, 3]


async def test_when_another_worker_was_faster_after_an_outage_its_image_counts(
    studio, painter, until, url, caplog, monkeypatch
):
    caplog.set_level("INFO")
    monkeypatch.setattr(loop_file, "PROGRESS_S", 600)  # it does not give up before it has said what it has

    painter.go_on.clear()
    async with studio(lease_s=600) as s:
        task = await s.submit()
        await until(painter.painting.is_set)
        s.database.away = True
        painter.go_on.set()
        await until(lambda: not painter.here)
        async with Database.open(url) as others:
            await predictions.recover(others, 3, lost_worker_id=ME.id)
            (taken,) = await claims.claim(others, [MODEL], "host:2", {MODEL: {Mode.EXACT: "v2"}}, 60, ROOM)
            assert await predictions.complete(others, taken, [False], 1)
        s.database.away = False
        await until(lambda: not s.loop._jobs)
        done = await s.now(task)
        assert (done.version, done.attempt, done.inference_ms) == ("v2", 2, 1)
    assert "counted=False" in caplog.text


async def test_a_claim_whose_answer_was_lost_is_found_and_handed_back(studio, monkeypatch, caplog):
    claim, lost = claims.claim, []

    async def claim_once_in_vain(*arguments):
        tasks = await claim(*arguments)
        if tasks and not lost:
            lost.extend(tasks)
            raise DatabaseUnavailable("the answer was lost")
        return tasks

    monkeypatch.setattr(claims, "claim", claim_once_in_vain)

    async with studio(lease_s=1, clock=Clock()) as s:
        done = await s.end_of(await s.submit())
        assert (done.status, done.attempt, done.workers_lost) == (Status.COMPLETED, 2, 0)
    assert "orphaned_lease_found" in caplog.text


async def test_an_end_whose_answer_was_lost_is_said_again_and_counts_once(studio, painter, until):
    painter.go_on.clear()
    async with studio(lease_s=600) as s:
        task = await s.submit()
        await until(painter.painting.is_set)
        await asyncio.sleep(2 * loop_file.PROGRESS_S)  # no report is under way
        s.database.deaf = True
        painter.go_on.set()
        done = await s.end_of(task)
        await until(lambda: not s.loop._jobs)
        assert await s.now(task) == done
        assert (done.status, done.attempt) == (Status.COMPLETED, 1)
    assert painter.seeds == [7]


async def test_a_place_for_files_that_is_away_is_waited_for(studio, painter, until):
    Slow.tries, Slow.there = 0, asyncio.Event()

    async with studio(place=Slow, lease_s=1, clock=Clock()) as s:
        task = await s.submit()
        await until(lambda: Slow.tries >= 3)
        assert (await s.now(task)).status is Status.PROCESSING
        Slow.there.set()
        done = await s.end_of(task)
        assert (done.status, done.attempt) == (Status.COMPLETED, 1)
        assert len(await s.images_of(done)) == 1
    assert painter.seeds == [7]


async def test_told_to_stop_it_does_not_wait_for_a_database_that_is_away(studio, painter, until, monkeypatch):
    monkeypatch.setattr(loop_file, "SHUTDOWN_RETRY_S", 0.3)

    painter.go_on.clear()
    async with studio() as s:
        task = await s.submit()
        await until(painter.painting.is_set)
        s.database.away = True
        s.stopping.set()
        await until(lambda: not s.loop._jobs)
        s.database.away = False
        assert (await s.now(task)).status is Status.PROCESSING, "its lease gives it back"


# --- PostgreSQL ------------------------------------------------------------------------------------------------


async def test_on_postgresql_a_commit_wakes_it_and_a_cancel_reaches_it(studio, painter, until, postgres):
    at = postgres.url()
    async with studio(at=at, lease_s=600) as s, Database.open(at) as elsewhere:
        await until(lambda: s.loop._claims_begun and s.loop._claim_running is None)
        s.enqueuer = Enqueuer(elsewhere, 100)
        waits = []
        for seed in range(3):
            await asyncio.sleep(0.2)
            done = await s.end_of(await s.submit(seed))
            assert done.status is Status.COMPLETED
            waits.append(done.started_ms - done.created_ms)
        assert min(waits) < loop_file.IDLE_S * 1000 / 4
        painter.painting.clear()
        painter.go_on.clear()
        task = await s.submit(seed=9, mode=Mode.TURBO)
        await until(painter.painting.is_set)
        assert (await s.now(task)).version == "v1-turbo"
        assert await predictions.cancel(elsewhere, task.id, s.key.id)
        await until(lambda: not s.loop._jobs)  # long before it would renew the lease


async def test_a_postgresql_server_that_is_away_for_a_while_costs_nothing(studio, painter, until, postgres):
    painter.go_on.clear()
    async with studio(at=postgres.url(), lease_s=30) as s:
        task = await s.submit()
        await until(painter.painting.is_set)
        await asyncio.to_thread(postgres.stop)
        painter.go_on.set()
        await until(lambda: not painter.here)
        await asyncio.sleep(1)
        await asyncio.to_thread(postgres.start)
        done = await s.end_of(task)
        assert (done.status, done.attempt) == (Status.COMPLETED, 1)
        assert (await s.end_of(await s.submit(seed=8))).status is Status.COMPLETED
    assert painter.seeds == [7, 8]


# --- many at once ----------------------------------------------------------------------------------------------


async def test_as_many_are_drawn_together_as_are_allowed(studio, painter, until):
    painter.go_on.clear()
    async with studio(tasks_max=3) as s:
        submitted = [await s.submit(seed=seed) for seed in range(5)]
        await until(lambda: len(s.loop._jobs) == 3)
        await asyncio.sleep(0.05)
        assert [(await s.now(each)).status for each in submitted[3:]] == [Status.CREATED] * 2
        painter.go_on.set()
        assert {done.status for done in await s.ends_of(submitted)} == {Status.COMPLETED}
    assert max(len(step) for step in painter.together) == 3
    assert {0, 1, 2} in painter.together
    assert painter.seeds == [0, 1, 2, 3, 4]


async def test_a_huge_task_holds_up_no_small_one_of_another_key(studio, painter, until):
    """The room is 3.4 tasks of 28 steps: four images fill it. Beside it there is a place for each key that has none."""

    painter.go_on.clear()
    async with studio(pictures_max=0.01) as s:
        other, third = [(await keys.create(s.database, name))[0] for name in ("other", "third")]
        huge = await s.submit(seed=1, num_images=4)
        await until(painter.painting.is_set)
        own = await s.submit(seed=11, steps=4)
        small = await s.submit(seed=21, steps=4, key=other)
        again = await s.submit(seed=22, steps=4, key=other)
        large = await s.submit(seed=31, num_images=4, key=third)
        await until(lambda: len(s.loop._jobs) == 2)
        await asyncio.sleep(0.2)  # it has looked again
        assert {id_ for id_, _ in s.loop._jobs} == {huge.id, small.id}
        for waits in (own, again, large):
            assert (await s.now(waits)).status is Status.CREATED
        painter.go_on.set()
        assert {done.status for done in await s.ends_of([huge, own, small, again, large])} == {Status.COMPLETED}
    assert {1, 2, 3, 4, 21} in painter.together


async def test_a_key_of_higher_priority_overtakes_another_by_its_head_start(studio, painter, until):
    """One place, and no reserve for such tasks. The head start of one level is 2.2 of them."""
    painter.go_on.clear()
    async with studio(tasks_max=1, pictures_max=0.01) as s:
        high, _ = await keys.create(s.database, "high", priority=1)

        async def submit(seed, key):
            asked = ImageRequest("a house", Size(256, 256), seed, steps=200)
            return await s.enqueuer.submit(NewTask(key, MODEL, asked))

        low = [await submit(1, s.key)]
        await until(painter.painting.is_set)
        low += [await submit(seed, s.key) for seed in (2, 3, 4)]
        urgent = [await submit(seed, high) for seed in range(11, 17)]
        painter.go_on.set()
        assert {done.status for done in await s.ends_of(low + urgent)} == {Status.COMPLETED}
    assert painter.seeds == [1, 11, 12, 13, 14, 2, 15, 3, 16, 4]
    assert painter.priorities == [0, 1, 1, 1, 1, 0, 1, 0, 1, 0]


async def test_a_flood_of_small_tasks_holds_up_no_small_one_of_another_key(studio, painter, until):
    painter.go_on.clear()
    async with studio() as s:
        flood = [await s.submit(seed=seed) for seed in range(100, 120)]
        await until(lambda: len(s.loop._jobs) == 8)
        small = await s.submit(seed=1, key=(await keys.create(s.database, "other"))[0])
        await until(lambda: len(s.loop._jobs) == 9)
        assert (await s.now(small)).status is Status.PROCESSING
        painter.go_on.set()
        assert {done.status for done in await s.ends_of([*flood, small])} == {Status.COMPLETED}
    assert max(len(step) for step in painter.together) == 9


async def test_what_is_suspected_waits_for_what_is_beside_and_is_drawn_alone(studio, painter, until):
    painter.go_on.clear()
    async with studio(tasks_max=1) as s:
        other = (await keys.create(s.database, "other"))[0]
        quarantined = await s.submit(seed=1)
        await until(painter.painting.is_set)
        await s.submit(seed=2)
        small = await s.submit(seed=3, key=other)
        await until(lambda: len(s.loop._jobs) == 2)
        (held,) = [claim for claim in s.loop._jobs if claim[0] == quarantined.id]
        await predictions.requeue(s.database, predictions.Lease(*held, watched=False), quarantined=True)
        later = await s.submit(seed=4, key=other)
        painter.together.clear()
        painter.go_on.set()
        await s.ends_of([small, quarantined, later])
    assert [step for step in painter.together if 1 in step][-STEPS:] == [{1}] * STEPS


async def test_what_has_lost_a_worker_is_drawn_alone_and_not_passed_over(studio, painter, until):
    painter.go_on.clear()
    async with studio() as s:
        await s.submit(seed=1)
        await until(painter.painting.is_set)
        lost = [await s.submit(seed=seed) for seed in (2, 3)]
        await until(lambda: len(s.loop._jobs) == 3)
        before = await s.submit(seed=4)
        await until(lambda: len(s.loop._jobs) == 4)
        assert await predictions.recover(s.database, 3, lost_worker_id=ME.id) == 4  # as if this worker had died
        after = await s.submit(seed=5)
        await asyncio.sleep(0.05)
        assert (await s.now(after)).status is Status.CREATED, "it waits behind those that are suspected"
        painter.together.clear()
        painter.go_on.set()
        done = await s.ends_of([*lost, before, after])
        assert [(each.status, each.attempt) for each in done] == [(Status.COMPLETED, 2)] * 3 + [("completed", 1)]
    alone = [step for step in painter.together if len(step) == 1]
    assert alone[-20:] == [{seed} for seed in (1, 2, 3, 4, 5) for _ in range(STEPS)]


async def test_an_engine_that_fails_costs_no_innocent_task(studio, painter, until):
    painter.fatal[2] = RuntimeError("no memory")

    painter.go_on.clear()
    async with studio() as s:
        submitted = [await s.submit(seed=1)]
        await until(painter.painting.is_set)
        submitted += [await s.submit(seed=seed) for seed in (2, 3)]
        await until(lambda: s.bridge._thread._work_queue.qsize() == 2)  # both join the first one
        painter.go_on.set()
        first, guilty, last = await s.ends_of(submitted)
        assert (first.status, last.status) == (Status.COMPLETED, Status.COMPLETED)
        assert (guilty.status, guilty.code) == (Status.FAILED, 1405)
        assert guilty.error.startswith(f"the worker failed to generate this task; its log says why, under {guilty.id}/")
        assert not s.bridge.broken


async def test_an_engine_that_only_fails_ends_the_worker_and_leaves_it_all_for_another(studio, painter, until):
    painter.fatal |= dict.fromkeys((1, 2), RuntimeError("the device is gone"))

    painter.go_on.clear()
    async with studio() as s:
        submitted = [await s.submit(seed=seed) for seed in (1, 2)]
        await until(lambda: len(s.loop._jobs) == 2)
        painter.go_on.set()
        async with asyncio.timeout(20):
            while await workers.ready(s.database, 15):
                await asyncio.sleep(0.002)
        assert s.bridge.broken
        left = [await s.now(each) for each in submitted]
        assert {each.status for each in left} == {Status.CREATED}
        assert all(each.workers_lost for each in left)


WORKER = """
import asyncio, os, sys, time
from pathlib import Path
from painter import Painter
from hidream.settings.tables import Worker as Limits
from hidream.store.database import Database
from hidream.store.workers import Worker, worker_id
from hidream.outputs.folder import Folder
from hidream.types import Mode
from hidream.worker.bridge import Bridge
from hidream.worker.generation import Tools
from hidream.worker.loop import WorkerLoop

url, model, folder, wanted = sys.argv[1:]

class Killer(Painter):
    def step(self):
        if len(self.here) < int(wanted):
            time.sleep(0.001)
            return []
        outcomes = super().step()
        if 666 in self.together[-1]:
            os._exit(9)
        return outcomes

async def main():
    async with Database.open(url) as database:
        bridge, painter, stopping = Bridge(), Killer(), asyncio.Event()
        painter.go_on.set()
        bridge.set_engines({model: painter})
        asyncio.get_running_loop().add_reader(0, stopping.set)
        me = Worker(worker_id(os.getpid()), [model], "v1")
        outputs, uploads = Folder(Path(folder), "outputs"), Folder(Path(folder), "uploads")
        tools = Tools(lambda pixels: False, outputs, uploads, {model: dict.fromkeys(Mode, "v1")})
        await WorkerLoop(database, bridge, me, tools, Limits()).run(stopping)

asyncio.run(main())
"""


@pytest.mark.integration
async def test_a_task_that_kills_its_worker_takes_no_other_with_it(tmp_path, url):
    """Real processes, buried as `server/supervisor` does it; the first takes all tasks before it begins."""
    seeds, attempts_max = (1, 2, 666, 3, 4), Limits().attempts_max

    async def live(database, ids, wanted):
        """One worker, until it has died or nothing is left to draw; how it ended."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WORKER, url, MODEL, str(tmp_path), str(wanted)),
            stdin=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parent,
        )
        while process.returncode is None and (await history.finished(database, ids)).keys() < ids:
            await asyncio.sleep(0.01)
        process.stdin.close()
        status = await process.wait()
        await predictions.recover(database, attempts_max, workers.worker_id(process.pid))
        return status

    async with Database.open(url) as database, asyncio.timeout(120):
        key, _ = await keys.create(database, "test")
        submitted, enqueuer = [], Enqueuer(database, 100)
        for seed in seeds:
            asked = ImageRequest("a house", Size(64, 48), seed, False, False, False, ImageFormat.PNG)
            submitted.append(await enqueuer.submit(NewTask(key, MODEL, asked)))
        ids, ends = {prediction.id for prediction in submitted}, []
        while (await history.finished(database, ids)).keys() < ids:
            ends.append(await live(database, ids, wanted=1 if ends else len(seeds)))
        assert ends == [9] * attempts_max + [0]
        done = [await history.get(database, prediction.id, key.id) for prediction in submitted]
    assert {each.input.seed: each.status for each in done} == {
        seed: Status.FAILED if seed == 666 else Status.COMPLETED for seed in seeds
    }
    assert {each.input.seed: each.workers_lost for each in done} == {
        seed: attempts_max if seed == 666 else 1 for seed in seeds
    }


async def test_it_is_ready_while_it_runs(studio):
    async with studio() as s:
        await s.end_of(await s.submit())
        assert await workers.ready(s.database, 15) == [ME]
        s.stopping.set()
        async with asyncio.timeout(20):
            while await workers.ready(s.database, 15):
                await asyncio.sleep(0.002)
