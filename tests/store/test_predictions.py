"""The transitions, one by one and then, by a property test, in any order against a model in plain Python."""

import asyncio
import dataclasses
import re
import tempfile
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hidream.errors import PromptRefused, QueueFull
from hidream.store import keys, predictions
from hidream.store.database import Database
from hidream.store.schema import PREDICTIONS
from hidream.store.submission import Submission
from hidream.types import ImageFormat, Mode, Size, Status

MODEL = "wavespeed-ai/hidream-i1-dev"
VERSIONS = {mode: f"v1-{mode}" for mode in Mode}
SUBMISSION = Submission("ein Haus “am Meer” 🏠", Size(512, 768), 7, True, True, False, ImageFormat.PNG)


async def new_key(database):
    return (await keys.create(database, "test"))[0].id


async def submit(database, key_id, submission=SUBMISSION, queue_max=1000):
    return await predictions.submit(database, key_id, MODEL, submission, queue_max)


async def claim(database, worker="w1", lease_s=15, beside_others=False):
    return await predictions.claim(database, [MODEL], worker, VERSIONS, lease_s, beside_others=beside_others)


def test_what_was_submitted_is_what_is_read(in_database):
    async def scenario(database):
        key_id = await new_key(database)
        prediction = await submit(database, key_id)
        assert await predictions.get(database, prediction.id, key_id) == prediction
        assert prediction.input == SUBMISSION
        assert (prediction.status, prediction.code, prediction.attempt) == (Status.CREATED, 0, 0)
        assert re.fullmatch("[0-9a-f]{32}", prediction.id)
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}\.png", prediction.output_name)

    in_database(scenario)


def test_another_key_sees_nothing(in_database):
    async def scenario(database):
        mine, theirs = await new_key(database), await new_key(database)
        prediction = await submit(database, mine)
        assert await predictions.get(database, prediction.id, theirs) is None
        assert await predictions.get(database, "0" * 32, mine) is None

    in_database(scenario)


def test_the_queue_has_an_end(in_database):
    async def scenario(database):
        key_id = await new_key(database)
        for _ in range(2):
            await submit(database, key_id, queue_max=2)
        with pytest.raises(QueueFull, match="2 tasks wait") as caught:
            await submit(database, key_id, queue_max=2)
        assert caught.value.retry_after_s > 0
        await claim(database)
        with pytest.raises(QueueFull):
            await submit(database, key_id, queue_max=2)
        task = await claim(database)
        await predictions.complete(database, task, False, 1)
        await submit(database, key_id, queue_max=2)

    in_database(scenario)


def test_a_refused_prompt_has_failed_and_is_never_claimed(in_database):
    async def scenario(database):
        key_id = await new_key(database)
        refused = await predictions.refuse(database, key_id, MODEL, SUBMISSION, PromptRefused("because"))
        assert (refused.status, refused.code, refused.error) == (Status.FAILED, 1200, "because")
        assert refused.execution_ms == 0
        assert await predictions.get(database, refused.id, key_id) == refused
        assert await claim(database) is None

    in_database(scenario)


def test_the_oldest_is_claimed_first_and_only_once(in_database, clock):
    async def scenario(database):
        key_id = await new_key(database)
        submitted = []
        for _ in range(5):
            submitted.append((await submit(database, key_id)).id)
            clock.now += 1
        claimed = await asyncio.gather(*(claim(database, f"w{i}") for i in range(8)))
        assert [task.id for task in claimed if task] == submitted

    in_database(scenario)


def test_a_worker_claims_only_what_it_serves(in_database):
    async def scenario(database):
        await submit(database, await new_key(database))
        assert await predictions.claim(database, ["another/model"], "w1", VERSIONS, 15) is None
        assert await predictions.claim(database, [MODEL, "another/model"], "w1", VERSIONS, 15)

    in_database(scenario)


def test_a_completed_task_says_how_long_it_took(in_database, clock):
    async def scenario(database):
        key_id = await new_key(database)
        prediction = await submit(database, key_id)
        clock.now += 10
        task = await claim(database)
        clock.now += 2.5
        assert await predictions.complete(database, task, True, 2000)
        done = await predictions.get(database, prediction.id, key_id)
        assert (done.status, done.has_nsfw, done.version) == (Status.COMPLETED, True, "v1-exact")
        assert (done.inference_ms, done.execution_ms) == (2000, 2500)

    in_database(scenario)


def test_who_has_lost_a_task_can_change_nothing(in_database, clock):
    async def scenario(database):
        key_id = await new_key(database)
        prediction = await submit(database, key_id)
        stale = await claim(database, "w1", lease_s=5)
        clock.now += 6
        assert await predictions.recover(database, workers_max=3) == 1
        fresh = await claim(database, "w2")
        before = await predictions.get(database, prediction.id, key_id)
        assert not await predictions.complete(database, stale, True, 1)
        assert not await predictions.fail(database, stale, 1405, "too late")
        assert not await predictions.hand_back(database, stale)
        assert await predictions.renew(database, "w1", 5) == set()
        assert await predictions.get(database, prediction.id, key_id) == before
        assert await predictions.complete(database, fresh, False, 1)
        assert not await predictions.complete(database, fresh, False, 1)

    in_database(scenario)


def test_a_renewed_lease_is_kept(in_database, clock):
    async def scenario(database):
        await submit(database, await new_key(database))
        task = await claim(database, "w1", lease_s=5)
        for _ in range(3):
            clock.now += 4
            assert await predictions.renew(database, "w1", 5) == {(task.id, 1)}
            assert await predictions.recover(database, workers_max=3) == 0

    in_database(scenario)


def test_handing_back_costs_no_chance_but_losing_workers_does(in_database, clock):
    async def scenario(database):
        key_id = await new_key(database)
        prediction = await submit(database, key_id)
        for _ in range(5):
            assert await predictions.hand_back(database, await claim(database))
        for _ in range(2):
            await claim(database, "crasher")
            assert await predictions.recover(database, 3, lost_worker_id="crasher") == 1
            waiting = await predictions.get(database, prediction.id, key_id)
            assert (waiting.status, waiting.started_ms) == (Status.CREATED, None)
        await claim(database, "crasher")
        assert await predictions.recover(database, 3, lost_worker_id="crasher") == 1
        failed = await predictions.get(database, prediction.id, key_id)
        assert (failed.status, failed.code, failed.attempt) == (Status.FAILED, 1405, 8)
        assert "lost 3 times" in failed.error

    in_database(scenario)


def test_a_claim_says_the_version_of_the_mode_that_was_asked(in_database):
    async def scenario(database):
        key_id = await new_key(database)
        for mode in Mode:
            await submit(database, key_id, dataclasses.replace(SUBMISSION, mode=mode))
            assert (await claim(database)).version == f"v1-{mode}"

    in_database(scenario)


def test_a_task_of_an_earlier_release_is_exact(in_database):
    async def scenario(database):
        await submit(database, await new_key(database))
        said = {name: value for name, value in SUBMISSION.to_json().items() if name != "mode"}
        async with database.write() as connection:
            await connection.execute(sa.update(PREDICTIONS).values(input=said))
        task = await claim(database)
        assert (task.version, task.input) == ("v1-exact", SUBMISSION)

    in_database(scenario)


def test_what_is_suspected_is_claimed_alone_and_not_passed_over(in_database, clock):
    async def scenario(database):
        key_id = await new_key(database)
        for _ in range(2):
            await submit(database, key_id)
            clock.now += 1
        handed_back = await claim(database)
        assert await predictions.hand_back(database, handed_back, suspected=True)
        assert await claim(database, beside_others=True) is None
        suspected = await claim(database)
        assert (suspected.id, suspected.workers_lost, suspected.attempt) == (handed_back.id, 1, 2)
        fine = await claim(database, beside_others=True)
        assert fine.workers_lost == 0
        assert await predictions.recover(database, 3, lost_worker_id="w1") == 2
        assert await claim(database, beside_others=True) is None
        assert await claim(database)

    in_database(scenario)


def test_ended_tells_those_that_have(in_database):
    async def scenario(database):
        key_id = await new_key(database)
        waiting, done = await submit(database, key_id), await submit(database, key_id)
        refused = await predictions.refuse(database, key_id, MODEL, SUBMISSION, PromptRefused("because"))
        task = await claim(database)
        await predictions.complete(database, task, False, 1)
        ids = {waiting.id, done.id, refused.id}
        assert await predictions.ended(database, ids) == {task.id, refused.id}
        assert await predictions.ended(database, []) == set()

    in_database(scenario)


# --- any order -------------------------------------------------------------------------------------------------

LEASE_S = 10
WORKERS_MAX = 2
WORKERS = st.sampled_from(["w1", "w2"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit")),
        st.tuples(st.just("claim"), WORKERS, st.booleans()),
        st.tuples(st.just("renew"), WORKERS),
        st.tuples(st.sampled_from(["complete", "fail", "hand_back", "suspect"]), st.integers(0, 20)),
        st.tuples(st.just("recover"), st.none() | WORKERS),
        st.tuples(st.just("wait"), st.integers(1, 2 * LEASE_S)),
    ),
    min_size=15,
    max_size=40,
)


@dataclass
class ModelTask:
    id: str
    status: str = "created"
    attempt: int = 0
    workers_lost: int = 0
    worker_id: str | None = None
    lease_until_ms: int | None = None

    def leave(self, status):
        self.status, self.worker_id, self.lease_until_ms = status, None, None


@dataclass
class Model:
    """What the store should be, as a list."""

    now: float = 1000.0
    tasks: list[ModelTask] = field(default_factory=list)

    def lease(self):
        return round((self.now + LEASE_S) * 1000)

    def claim(self, worker, beside_others):
        for task in self.tasks:
            if task.status == "created":
                if beside_others and task.workers_lost:
                    return None
                task.status, task.worker_id, task.lease_until_ms = "processing", worker, self.lease()
                task.attempt += 1
                return task
        return None

    def renew(self, worker):
        held = [task for task in self.tasks if task.worker_id == worker]
        for task in held:
            task.lease_until_ms = self.lease()
        return {(task.id, task.attempt) for task in held}

    def end(self, task_id, attempt, status, suspected):
        for task in self.tasks:
            if (task.id, task.attempt, task.status) == (task_id, attempt, "processing"):
                task.workers_lost += suspected
                task.leave(status)
                return True
        return False

    def recover(self, worker):
        lost = [
            task
            for task in self.tasks
            if task.status == "processing"
            and (task.lease_until_ms < round(self.now * 1000) or task.worker_id == worker)
        ]
        for task in lost:
            task.workers_lost += 1
            task.leave("failed" if task.workers_lost >= WORKERS_MAX else "created")
        return len(lost)


@settings(suppress_health_check=list(HealthCheck))
@given(STEPS)
def test_any_order_of_transitions_gives_what_the_model_says(steps):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(steps, f"sqlite+aiosqlite:///{folder}/hidream.db"))


async def compare(steps, url):
    model = Model()
    claims = []
    async with Database.open(url, clock=lambda: model.now) as database:
        key_id = await new_key(database)
        for step in steps:
            match step:
                case ("submit",):
                    model.tasks.append(ModelTask((await submit(database, key_id)).id))
                    model.now += 0.001
                case ("claim", worker, beside_others):
                    expected = model.claim(worker, beside_others)
                    task = await claim(database, worker, LEASE_S, beside_others)
                    assert (task and task.id) == (expected and expected.id)
                    claims += [task] if task else []
                case ("renew", worker):
                    assert await predictions.renew(database, worker, LEASE_S) == model.renew(worker)
                case ("recover", worker):
                    assert await predictions.recover(database, WORKERS_MAX, worker) == model.recover(worker)
                case ("wait", seconds):
                    model.now += seconds
                case (end, index) if claims:
                    await compare_end(database, model, claims[index % len(claims)], end)
            assert await rows(database) == [dataclasses.astuple(task) for task in model.tasks], step


async def compare_end(database, model, task, end):
    if end == "complete":
        done, status = await predictions.complete(database, task, False, 1), "completed"
    elif end == "fail":
        done, status = await predictions.fail(database, task, 1405, "no"), "failed"
    else:
        done, status = await predictions.hand_back(database, task, suspected=end == "suspect"), "created"
    assert done == model.end(task.id, task.attempt, status, suspected=end == "suspect")


async def rows(database):
    columns = [PREDICTIONS.c[f.name] for f in dataclasses.fields(ModelTask)]
    async with database.read() as connection:
        return [tuple(row) for row in await connection.execute(sa.select(*columns).order_by(PREDICTIONS.c.created_ms))]
