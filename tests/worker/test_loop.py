"""The worker's loop, on a real store and real files: what becomes of a task, whatever happens while it is drawn."""

import asyncio
import io
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from painter import STEPS
from PIL import Image

from hidream.errors import InvalidInput
from hidream.outputs import files
from hidream.settings import Worker as Limits
from hidream.store import keys, predictions, workers
from hidream.store.database import Database
from hidream.store.endings import Endings
from hidream.store.submission import Submission
from hidream.store.workers import Worker
from hidream.types import Conformance, ImageFormat, ImageRequest, LoraUse, Mode, Render, Sampler, Size, Status
from hidream.worker.bridge import Bridge
from hidream.worker.loop import Loop, Tools

MODEL = "wavespeed-ai/hidream-i1-dev"
ME = Worker("host:1", [MODEL], "v1")
VERSIONS = dict.fromkeys(Mode, "v1") | {Mode.TURBO: "v1-turbo"}


class Studio:
    """A store with one key, and a loop beside it."""

    def __init__(self, database, key_id, painter, tools, limits):
        self.database = database
        self.key_id = key_id
        self.folder = tools.outputs_dir
        self.stopping = asyncio.Event()
        self.bridge = Bridge()
        self.bridge.drive(painter)
        self.loop = Loop(database, self.bridge, ME, tools, limits)

    async def submit(self, seed=7, checker=True, output_format=ImageFormat.PNG, **extras):
        asked = Submission("a house", Size(64, 48), seed, False, checker, False, output_format, **extras)
        return await predictions.submit(self.database, self.key_id, MODEL, asked, 100)

    async def end_of(self, prediction):
        return await Endings(self.database).settled(prediction.id, self.key_id, 20)

    async def ends_of(self, predictions):
        return [await self.end_of(prediction) for prediction in predictions]

    async def now(self, prediction):
        return await predictions.get(self.database, prediction.id, self.key_id)


@pytest.fixture
def studio(tmp_path, url, painter):
    @asynccontextmanager
    async def opened(flagged=lambda pixels: False, lease_s=15.0, tasks_max=8):
        tools = Tools(flagged, tmp_path / "outputs", VERSIONS)
        limits = Limits(lease_s=lease_s, attempts_max=3, tasks_max=tasks_max)
        async with Database.open(url) as database:
            key, _ = await keys.create(database, "test")
            studio = Studio(database, key.id, painter, tools, limits)
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
EXTRAS |= {"render": Render.NATIVE, "mode": Mode.BALANCED, "loras": (LoraUse("ink", 0.5), LoraUse("water"))}


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
            painter.bad[1], painter.refused[2] = error, error
            bad, refused, fine = await s.ends_of([await s.submit(seed=seed) for seed in (1, 2, 3)])
            for failed in (bad, refused):
                assert (failed.status, failed.code, failed.error) == (Status.FAILED, code, message)
            assert fine.status is Status.COMPLETED

    asyncio.run(scenario())


def test_told_to_stop_it_hands_all_tasks_back_at_once(studio, painter, until):
    async def scenario():
        painter.go_on.clear()
        async with studio(tasks_max=2) as s:
            drawn = [await s.submit(seed=seed) for seed in (1, 2)]
            await until(lambda: len(s.loop._places) == 2)
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

    asyncio.run(scenario())


def test_a_lost_lease_ends_the_picture_and_spoils_nothing(studio, painter, until):
    async def scenario():
        painter.go_on.clear()
        async with studio(lease_s=0.3) as s:
            prediction = await s.submit()
            await until(painter.painting.is_set)
            await predictions.recover(s.database, 3, lost_worker_id=ME.id)
            other = await predictions.claim(s.database, [MODEL], "host:2", dict.fromkeys(Mode, "v2"), 60)
            assert other.id == prediction.id
            await until(lambda: not s.loop._places)
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
        async with studio(tasks_max=1) as s:
            painter.go_on.clear()
            blocking = await s.submit(seed=1)
            lost = await s.submit(seed=2)
            task = None
            while task is None:  # whichever of the two the loop has left over
                task = await predictions.claim(s.database, [MODEL], "host:2", dict.fromkeys(Mode, "v0"), 0)
            painter.go_on.set()
            for prediction in (blocking, lost):
                assert (await s.end_of(prediction)).version == "v1"

    asyncio.run(scenario())
    assert sorted(painter.seeds) == [1, 2]


def test_the_version_names_the_mode(studio):
    async def scenario():
        async with studio() as s:
            exact, turbo = await s.ends_of([await s.submit(), await s.submit(mode=Mode.TURBO)])
            assert (exact.version, turbo.version) == ("v1", "v1-turbo")
            image = Image.open(io.BytesIO(await files.read(s.folder, turbo.output_name)))
            assert image.text["version"] == "v1-turbo"

    asyncio.run(scenario())


# --- many at once ----------------------------------------------------------------------------------------------


def test_as_many_are_drawn_together_as_are_allowed(studio, painter, until):
    async def scenario():
        painter.go_on.clear()
        async with studio(tasks_max=3) as s:
            submitted = [await s.submit(seed=seed) for seed in range(5)]
            await until(lambda: len(s.loop._places) == 3)
            await asyncio.sleep(0.05)
            assert [(await s.now(each)).status for each in submitted[3:]] == [Status.CREATED] * 2
            painter.go_on.set()
            assert {done.status for done in await s.ends_of(submitted)} == {Status.COMPLETED}

    asyncio.run(scenario())
    assert max(len(step) for step in painter.together) == 3
    assert {0, 1, 2} in painter.together
    assert painter.seeds == [0, 1, 2, 3, 4]


def test_what_has_lost_a_worker_is_drawn_alone_and_not_passed_over(studio, painter, until):
    async def scenario():
        painter.go_on.clear()
        async with studio() as s:
            await s.submit(seed=1)
            await until(painter.painting.is_set)
            lost = [await s.submit(seed=seed) for seed in (2, 3)]
            await until(lambda: len(s.loop._places) == 3)
            before = await s.submit(seed=4)
            await until(lambda: len(s.loop._places) == 4)
            assert await predictions.recover(s.database, 3, lost_worker_id=ME.id) == 4  # as if this worker had died
            after = await s.submit(seed=5)
            await asyncio.sleep(0.05)
            assert (await s.now(after)).status is Status.CREATED, "it waits behind those that are suspected"
            painter.together.clear()
            painter.go_on.set()
            done = await s.ends_of([*lost, before, after])
            assert [(each.status, each.attempt) for each in done] == [(Status.COMPLETED, 2)] * 3 + [("completed", 1)]

    asyncio.run(scenario())
    alone = [step for step in painter.together if len(step) == 1]
    assert alone[-20:] == [{seed} for seed in (1, 2, 3, 4, 5) for _ in range(STEPS)]


def test_an_engine_that_fails_costs_no_innocent_task(studio, painter, until):
    painter.fatal[2] = RuntimeError("no memory")

    async def scenario():
        painter.go_on.clear()
        async with studio() as s:
            submitted = [await s.submit(seed=1)]
            await until(painter.painting.is_set)
            submitted += [await s.submit(seed=seed) for seed in (2, 3)]
            await until(lambda: len(s.loop._places) == 3)
            painter.go_on.set()
            first, guilty, last = await s.ends_of(submitted)
            assert (first.status, last.status) == (Status.COMPLETED, Status.COMPLETED)
            assert (guilty.status, guilty.code) == (Status.FAILED, 1405)
            assert guilty.error == "the engine failed: RuntimeError: no memory"
            assert not s.bridge.broken

    asyncio.run(scenario())


def test_an_engine_that_only_fails_ends_the_worker_and_leaves_it_all_for_another(studio, painter, until):
    painter.fatal |= dict.fromkeys((1, 2), RuntimeError("the device is gone"))

    async def scenario():
        painter.go_on.clear()
        async with studio() as s:
            submitted = [await s.submit(seed=seed) for seed in (1, 2)]
            await until(lambda: len(s.loop._places) == 2)
            painter.go_on.set()
            async with asyncio.timeout(20):
                while await workers.ready(s.database, 15):
                    await asyncio.sleep(0.002)
            assert s.bridge.broken
            left = [await s.now(each) for each in submitted]
            assert {each.status for each in left} == {Status.CREATED}
            assert all(each.workers_lost for each in left)

    asyncio.run(scenario())


WORKER = """
import asyncio, os, sys, time
from pathlib import Path
from painter import Painter
from hidream.settings import Worker as Limits
from hidream.store.database import Database
from hidream.store.workers import Worker, worker_id
from hidream.types import Mode
from hidream.worker.bridge import Bridge
from hidream.worker.loop import Loop, Tools

url, model, outputs, wanted = sys.argv[1:]

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
        bridge.drive(painter)
        asyncio.get_running_loop().add_reader(0, stopping.set)
        me = Worker(worker_id(os.getpid()), [model], "v1")
        tools = Tools(lambda pixels: False, Path(outputs), dict.fromkeys(Mode, "v1"))
        await Loop(database, bridge, me, tools, Limits()).run(stopping)

asyncio.run(main())
"""


def test_a_task_that_kills_its_worker_takes_no_other_with_it(tmp_path, url):
    """Real processes, buried as `server/supervisor` does it; the first takes all tasks before it begins."""
    seeds, attempts_max = (1, 2, 666, 3, 4), Limits().attempts_max

    async def live(database, ids, wanted):
        """One worker, until it has died or nothing is left to draw; how it ended."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WORKER, url, MODEL, str(tmp_path), str(wanted)),
            stdin=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parent,
        )
        while process.returncode is None and await predictions.ended(database, ids) < ids:
            await asyncio.sleep(0.01)
        process.stdin.close()
        status = await process.wait()
        await predictions.recover(database, attempts_max, workers.worker_id(process.pid))
        return status

    async def scenario():
        async with Database.open(url) as database, asyncio.timeout(120):
            key, _ = await keys.create(database, "test")
            submitted = []
            for seed in seeds:
                asked = Submission("a house", Size(64, 48), seed, False, False, False, ImageFormat.PNG)
                submitted.append(await predictions.submit(database, key.id, MODEL, asked, 100))
            ids, ends = {prediction.id for prediction in submitted}, []
            while await predictions.ended(database, ids) < ids:
                ends.append(await live(database, ids, wanted=1 if ends else len(seeds)))
            assert ends == [9] * attempts_max + [0]
            done = [await predictions.get(database, prediction.id, key.id) for prediction in submitted]
        assert {each.input.seed: each.status for each in done} == {
            seed: Status.FAILED if seed == 666 else Status.COMPLETED for seed in seeds
        }
        assert {each.input.seed: each.workers_lost for each in done} == {
            seed: attempts_max if seed == 666 else 1 for seed in seeds
        }

    asyncio.run(scenario())


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
