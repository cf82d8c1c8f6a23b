"""The worker's loop, on a real store and real files: what becomes of a task, whatever happens while it is drawn."""

import asyncio
import io
from contextlib import asynccontextmanager

import numpy as np
import pytest
from PIL import Image

from hidream.errors import InvalidInput
from hidream.outputs import files
from hidream.settings import Worker as Limits
from hidream.store import keys, predictions, workers
from hidream.store.database import Database
from hidream.store.endings import Endings
from hidream.store.submission import Submission
from hidream.store.workers import Worker
from hidream.types import Conformance, ImageFormat, ImageRequest, LoraUse, Render, Sampler, Size, Status
from hidream.worker.bridge import Bridge
from hidream.worker.loop import Loop, Tools

MODEL = "wavespeed-ai/hidream-i1-dev"
ME = Worker("host:1", [MODEL], "v1")


class Studio:
    """A store with one key, and a loop beside it."""

    def __init__(self, database, key_id, tools, lease_s):
        self.database = database
        self.key_id = key_id
        self.folder = tools.outputs_dir
        self.stopping = asyncio.Event()
        self.loop = Loop(database, Bridge(), ME, tools, Limits(lease_s=lease_s, attempts_max=3))

    async def submit(self, seed=7, checker=True, output_format=ImageFormat.PNG, **extras):
        asked = Submission("a house", Size(64, 48), seed, False, checker, False, output_format, **extras)
        return await predictions.submit(self.database, self.key_id, MODEL, asked, 100)

    async def end_of(self, prediction):
        return await Endings(self.database).settled(prediction.id, self.key_id, 20)


@pytest.fixture
def studio(tmp_path, url, painter):
    @asynccontextmanager
    async def opened(flagged=lambda pixels: False, lease_s=15.0):
        tools = Tools(painter.generate, flagged, tmp_path / "outputs")
        async with Database.open(url) as database:
            key, _ = await keys.create(database, "test")
            studio = Studio(database, key.id, tools, lease_s)
            async with asyncio.TaskGroup() as group:
                running = group.create_task(studio.loop.run(studio.stopping))
                yield studio
                painter.go_on.set()
                studio.stopping.set()
                await asyncio.wait_for(running, 20)

    return opened


def test_a_task_becomes_a_file_and_then_a_completed_row(studio):
    async def scenario():
        async with studio() as s:
            done = await s.end_of(await s.submit())
            assert (done.status, done.has_nsfw, done.inference_ms, done.version) == (
                "completed",
                False,
                600,
                "v1",
            )
            image = Image.open(io.BytesIO(await files.read(s.folder, done.output_name)))
            assert image.size == (64, 48)
            assert image.text == {"Software": "hidream", "seed": "7", "version": "v1"}
            assert np.asarray(image).min() == np.asarray(image).max() == 7

    asyncio.run(scenario())


EXTRAS = {"negative_prompt": "fog", "shift": 2.0, "sampler": Sampler.EULER, "conformance": Conformance.OFFICIAL}
EXTRAS |= {"render": Render.NATIVE, "loras": (LoraUse("ink", 0.5), LoraUse("water"))}


def test_all_that_was_asked_reaches_the_model_every_time(studio, painter, until):
    expected = ImageRequest("a house", Size(64, 48), 7, steps=3, guidance=4.5, **EXTRAS)

    async def scenario():
        painter.go_on.clear()
        async with studio() as s:
            submitted = await s.submit(num_inference_steps=3, guidance_scale=4.5, **EXTRAS)
            await until(painter.painting.is_set)
            await predictions.recover(s.database, 3, lost_worker_id=ME.id)  # as if this worker had died
            painter.go_on.set()
            assert (await s.end_of(submitted)).attempt == 2

    asyncio.run(scenario())
    assert painter.requests == [expected, expected]


def test_what_is_not_asked_is_left_to_the_variant(studio, painter):
    async def scenario():
        async with studio() as s:
            await s.end_of(await s.submit())

    asyncio.run(scenario())
    assert painter.requests == [ImageRequest("a house", Size(64, 48), 7)]


@pytest.mark.parametrize("warnings", [(), ("too long", "left out from “am Meer” on")])
def test_warnings_stand_in_the_row(studio, painter, warnings, caplog):
    painter.warnings = warnings

    async def scenario():
        async with studio() as s:
            assert (await s.end_of(await s.submit())).warnings == warnings

    asyncio.run(scenario())
    assert "am Meer" not in caplog.text


def test_the_classifiers_word_is_kept_and_not_asked_for_in_vain(studio):
    asked = []

    def flagged(pixels):
        asked.append(pixels.shape)
        return True

    async def scenario():
        async with studio(flagged) as s:
            assert (await s.end_of(await s.submit(checker=True))).has_nsfw is True
            assert (await s.end_of(await s.submit(checker=False))).has_nsfw is False

    asyncio.run(scenario())
    assert asked == [(48, 64, 3)]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(InvalidInput("too odd"), 1401, "too odd"), (ValueError("bug"), 1405, "ValueError: bug")],
)
def test_a_task_that_raises_fails_and_the_worker_goes_on(studio, painter, error, code, message):
    async def scenario():
        async with studio() as s:
            painter.error = error
            failed = await s.end_of(await s.submit())
            assert (failed.status, failed.code, failed.error) == (Status.FAILED, code, message)
            painter.error = None
            assert (await s.end_of(await s.submit())).status is Status.COMPLETED

    asyncio.run(scenario())


def test_told_to_stop_it_hands_the_task_back_at_once(studio, painter, until):
    async def scenario():
        painter.go_on.clear()
        async with studio() as s:
            prediction = await s.submit()
            await until(painter.painting.is_set)
            await s.submit()
            s.stopping.set()
            waiting = await predictions.get(s.database, prediction.id, s.key_id)
            async with asyncio.timeout(20):
                while waiting.status is not Status.CREATED:
                    waiting = await predictions.get(s.database, prediction.id, s.key_id)
            assert not painter.go_on.is_set(), "the model thread is still inside the picture"
        assert painter.seeds == [7], "no further task was taken"

    asyncio.run(scenario())


def test_a_lost_lease_ends_the_picture_and_spoils_nothing(studio, painter, until):
    async def scenario():
        painter.go_on.clear()
        async with studio(lease_s=0.3) as s:
            prediction = await s.submit()
            await until(painter.painting.is_set)
            await predictions.recover(s.database, 3, lost_worker_id=ME.id)
            other = await predictions.claim(s.database, [MODEL], "host:2", "v2", 60)
            assert other.id == prediction.id
            await until(lambda: not s.loop._drawing)
            untouched = await predictions.get(s.database, prediction.id, s.key_id)
            assert (untouched.status, untouched.attempt, untouched.version) == (Status.PROCESSING, 2, "v2")

    asyncio.run(scenario())


def test_the_lease_is_renewed_while_a_picture_takes_long(studio, painter, until):
    async def scenario():
        painter.go_on.clear()
        async with studio(lease_s=0.3) as s:
            prediction = await s.submit()
            await until(painter.painting.is_set)
            await asyncio.sleep(0.7)
            assert await predictions.recover(s.database, 3) == 0
            painter.go_on.set()
            assert (await s.end_of(prediction)).attempt == 1

    asyncio.run(scenario())


def test_what_another_worker_has_lost_is_drawn(studio, painter):
    async def scenario():
        async with studio() as s:
            painter.go_on.clear()
            blocking = await s.submit(seed=1)
            lost = await s.submit(seed=2)
            task = None
            while task is None:  # whichever of the two the loop has left over
                task = await predictions.claim(s.database, [MODEL], "host:2", "v0", 0)
            painter.go_on.set()
            for prediction in (blocking, lost):
                assert (await s.end_of(prediction)).version == "v1"

    asyncio.run(scenario())
    assert sorted(painter.seeds) == [1, 2]


def test_it_is_ready_while_it_runs(studio):
    async def scenario():
        async with studio() as s:
            await s.end_of(await s.submit())
            assert await workers.ready(s.database, 15) == [ME]
            s.stopping.set()
            async with asyncio.timeout(20):
                while await workers.ready(s.database, 15):
                    await asyncio.sleep(0.002)

    asyncio.run(scenario())
