"""Any order of operations gives the same results and rows in plain Python, SQLite and PostgreSQL."""

import asyncio
import dataclasses
from collections import Counter
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from reference_store import DAY_MS, Plain, Task
from store_calls import MODEL, OTHER, SUBMISSION, VERSIONS

from hidream.errors import Conflict, Forbidden, PromptRefused, TooMany
from hidream.store import admission, claims, enqueue, history, keys, outbox, predictions, progress, retention, workers
from hidream.store.admission import IdempotencyRecord, NewTask
from hidream.store.claims import Capacity, ReserveCapacity
from hidream.store.database import Database
from hidream.store.enqueue import Enqueuer
from hidream.store.history import Query
from hidream.store.keys import Key, Limits
from hidream.store.outbox import DeliveryState
from hidream.store.prediction import Prediction
from hidream.store.predictions import TRANSITIONS
from hidream.store.schema import DELIVERIES, IDEMPOTENCY_RECORDS, METADATA, PREDICTIONS, PREVIEWS, VIRTUAL_STARTS
from hidream.store.workers import Worker
from hidream.types import Mode, Size, Status, Step

QUEUE_MAX, QUEUE_SHARE, WORKERS_MAX, LEASE_S = 12, 0.5, 2, 10
LIMITS = [
    Limits(),
    Limits(requests_per_minute=2),
    Limits(tasks_max=3),
    Limits(pixels_per_day=5 * 512 * 512),
    Limits(steps_max=28, pixels_max=512 * 512),
    Limits(images_max=1, work_per_day=60 * 512 * 512),
]
WORK = 512 * 512 * 28
"""The work of the smallest task below."""

KEYS = st.integers(0, len(LIMITS) - 1)
MODELS = st.sampled_from([MODEL, OTHER])
WORKERS = st.sampled_from(["w1", "w2", "w3"])
INPUTS = st.builds(
    lambda side, images, steps, mode: dataclasses.replace(
        SUBMISSION, size=Size(512, side), num_images=images, steps=steps, mode=mode
    ),
    st.sampled_from([512, 1024]),
    st.integers(1, 2),
    st.sampled_from([None, 14]),
    st.sampled_from(Mode),
)
ANY = st.integers(0, 1000)
"""Which of those that there are, counted round and round."""

ROW = [f.name for f in dataclasses.fields(Task) if f.name not in ("number", "key", "input", "has_files")]
ARROWS = {(source, target) for sources, target in TRANSITIONS.values() for source in sources}


@dataclass
class Real:
    """One database, and by which ids it knows what the plain store numbers."""

    database: Database
    enqueuer: Enqueuer
    keys: list[Key] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    delivery_ids: dict[int, str] = field(default_factory=dict)
    claims: list[Prediction] = field(default_factory=list)
    sent: list[outbox.Delivery] = field(default_factory=list)

    def number(self, id_):
        return self.ids.index(id_)

    async def clear(self):
        async with self.database.write() as connection:
            for table in reversed(METADATA.sorted_tables):
                await connection.execute(sa.delete(table))
        self.keys = [(await keys.create(self.database, "test", limits=limits))[0] for limits in LIMITS]
        self.ids, self.delivery_ids, self.claims, self.sent = [], {}, [], []

    async def submit(self, key, model, submission, webhook, refused, idempotency):
        asked = NewTask(self.keys[key], model, submission, "http://here", webhook)
        asked = dataclasses.replace(
            asked,
            idempotency=idempotency and IdempotencyRecord(*idempotency),
            refusal=PromptRefused("no") if refused else None,
        )
        try:
            prediction = await self.enqueuer.submit(asked)
        except (TooMany, Forbidden, Conflict) as error:
            return type(error).__name__, error.retry_after_s
        if prediction.id not in self.ids:
            self.ids.append(prediction.id)
        return "task", self.number(prediction.id)

    async def claim(self, models, worker, lease_ms, *room):
        tasks = await claims.claim(self.database, models, worker, VERSIONS, lease_ms / 1000, Capacity(*room))
        self.claims += tasks
        return [(self.number(task.id), task.attempt) for task in tasks]

    async def claim_beside(self, models, worker, lease_ms, tasks, work, excluded_keys):
        reserve = ReserveCapacity(tasks, work, frozenset(self.keys[key].id for key in excluded_keys))
        taken = await claims.claim_reserve(self.database, models, worker, VERSIONS, lease_ms / 1000, reserve)
        self.claims += taken
        return [(self.number(task.id), task.attempt) for task in taken]

    def _held(self, held):
        return {(self.number(h.id), h.attempt, h.watched) for h in held}

    async def renew(self, worker, lease_ms):
        return self._held(await predictions.renew(self.database, worker, lease_ms / 1000))

    async def report(self, worker, steps):
        said = {(self.ids[number], attempt): Step(*step) for (number, attempt), step in steps.items()}
        return self._held(await predictions.report(self.database, worker, said))

    async def watch(self, number, for_ms):
        await progress.watch(self.database, [self.ids[number]], for_ms / 1000)

    def _claimed(self, number, attempt):
        return next(task for task in self.claims if (task.id, task.attempt) == (self.ids[number], attempt))

    async def complete(self, number, attempt, *said):
        return await predictions.complete(self.database, self._claimed(number, attempt), *said)

    async def fail(self, number, attempt, *said):
        return await predictions.fail(self.database, self._claimed(number, attempt), *said)

    async def requeue(self, number, attempt, quarantined):
        return await predictions.requeue(self.database, self._claimed(number, attempt), quarantined=quarantined)

    async def register(self, worker, models):
        await workers.register(self.database, Worker(worker, models, "v1"))

    async def beat(self, worker):
        await workers.heartbeat(self.database, worker)

    async def abandon(self, unserved_ms):
        return await predictions.abandon(self.database, unserved_ms / 1000)

    async def recover(self, worker):
        return await predictions.recover(self.database, WORKERS_MAX, worker)

    async def cancel(self, number, key):
        return await predictions.cancel(self.database, self.ids[number], self.keys[key].id)

    async def delete(self, numbers, key):
        return len(await predictions.delete(self.database, [self.ids[n] for n in numbers], self.keys[key].id))

    async def expire(self, older_than_ms):
        return await retention.expire(self.database, older_than_ms)

    async def sweep(self):
        remains = await retention.purgeable(self.database, 0)
        await retention.purge(self.database, remains)
        return {self.number(task.id) for task in remains.predictions}

    async def claim_deliveries(self, lease_ms):
        found = await outbox.claim(self.database, 100, lease_ms / 1000)
        self.sent += found
        return {self.number(d.prediction_id): plain_delivery(self.number(d.prediction_id), d) for d in found}

    async def settle(self, claimed, state, status_code, error, again_in_ms):
        mine = next(d for d in self.sent if plain_delivery(self.number(d.prediction_id), d) == claimed)
        return await outbox.record_attempt(
            self.database, mine, DeliveryState(state), status_code, error, again_in_ms / 1000
        )

    async def replay(self, number, key):
        id_ = self.delivery_ids.get(number, "none")
        return await outbox.replay(self.database, id_, self.ids[number], self.keys[key].id)

    async def get(self, number, key):
        found = await history.get(self.database, self.ids[number], self.keys[key].id)
        return found and self.number(found.id)

    async def listed(self, key, page, page_size, model, status, after_ms):
        query = Query(page, page_size, after_ms, None, model, status)
        count, found = await history.list_predictions(self.database, self.keys[key].id, query)
        return count, [self.number(task.id) for task in found]

    async def before(self, number):
        async with self.database.read() as connection:
            row = await connection.execute(sa.select(*predictions.COLUMNS).where(PREDICTIONS.c.id == self.ids[number]))
        task = Prediction.of_row(row.one())
        return (await history.queue_snapshot(self.database, task.model)).place(task).before

    async def ended(self):
        return {self.number(id_) for id_ in await history.finished(self.database, self.ids)}

    async def rows(self):
        """All tables, in the plain store's words."""
        async with self.database.read() as connection:
            tasks = (await connection.execute(sa.select(PREDICTIONS))).mappings().all()
            owed = (await connection.execute(sa.select(DELIVERIES))).mappings().all()
            previews = (await connection.execute(sa.select(PREVIEWS))).all()
            repeats = (await connection.execute(sa.select(IDEMPOTENCY_RECORDS))).mappings().all()
            turns = {key_id: turn for key_id, turn in await connection.execute(sa.select(VIRTUAL_STARTS))}  # noqa: C416
        key = {key.id: i for i, key in enumerate(self.keys)}
        assert len({row["prediction_id"] for row in owed}) == len(owed), "one end owes one webhook"
        self.delivery_ids = {self.number(row["prediction_id"]): row["id"] for row in owed}
        return {
            "tasks": {
                self.number(row["id"]): {name: row[name] for name in ROW}
                | {"key": key[row["key_id"]], "has_files": row["output_name"] != ""}
                for row in tasks
            },
            "deliveries": {
                (n := self.number(row["prediction_id"])): dataclasses.astuple(plain_delivery(n, row)) for row in owed
            },
            "previews": {self.number(id_): (step, image) for id_, step, image in previews},
            "repeats": {
                (key[row["key_id"]], row["idempotency_key"]): (
                    row["body_hash"],
                    self.number(row["prediction_id"]),
                    row["created_ms"],
                )
                for row in repeats
            },
            "turns": {key[key_id]: turn for key_id, turn in turns.items() if key_id},
            "serving": turns.get("", 0),
        }


def plain_delivery(number, found):
    from reference_store import Delivery

    get = found.get if hasattr(found, "get") else lambda name: getattr(found, name)
    names = [f.name for f in dataclasses.fields(Delivery) if f.name != "number"]
    return Delivery(number, **{name: get(name) for name in names})


def plain_rows(plain):
    tasks = {}
    for task in plain.tasks.values():
        row = {name: getattr(task, name) for name in ROW} | {"nsfw": list(task.nsfw), "warnings": list(task.warnings)}
        tasks[task.number] = row | {"key": task.key, "has_files": task.has_files}
    return {
        "tasks": tasks,
        "deliveries": {n: dataclasses.astuple(delivery) for n, delivery in plain.deliveries.items()},
        "previews": dict(plain.previews),
        "repeats": dict(plain.repeats),
        "turns": dict(plain.next_turn),
        "serving": plain.serving,
    }


class Store(RuleBasedStateMachine):
    """All three stores, and every operation on each."""

    def __init__(self, runner, clock, reals, steps):
        super().__init__()
        self.runner, self.clock, self.reals, self.steps = runner, clock, reals, steps
        self.claims, self.sent = [], []
        self.before_step = self.answer = None

    @initialize()
    def begin(self):
        self.plain = Plain(LIMITS, QUEUE_MAX, QUEUE_SHARE, WORKERS_MAX)
        self.tick(0)
        self.run(*(real.clear() for real in self.reals))
        self.before_step = plain_rows(self.plain)

    def run(self, *calls):
        async def together():
            return await asyncio.gather(*calls)

        return self.runner.run(together())

    def tick(self, ms):
        self.plain.now += ms
        self.clock.now = self.plain.now / 1000

    def do(self, name, *args):
        """Run one operation on all three; time goes on by a millisecond, so that no two are at once."""
        self.tick(1)
        expected = getattr(self.plain, name)(*args)
        self.steps[name, bool(expected)] += 1
        for real, answer in zip(
            self.reals, self.run(*(getattr(real, name)(*args) for real in self.reals)), strict=True
        ):
            assert answer == expected, (real.database, name, args)
        self.answer = expected
        return expected

    def number(self, index):
        return index % self.plain.made

    # --- the operations ---

    @rule(ms=st.sampled_from([500, 5000, (LEASE_S + 1) * 1000, 35_000, 61_000, DAY_MS // 2]))
    def wait(self, ms):
        self.tick(ms)

    @rule(
        key=KEYS,
        model=MODELS,
        submission=INPUTS,
        webhook=st.sampled_from(["", "https://hook"]),
        refused=st.sampled_from([False] * 5 + [True]),
        idempotency=st.none() | st.tuples(st.sampled_from("abc"), st.sampled_from("xxy")),
    )
    def submit(self, key, model, submission, webhook, refused, idempotency):
        self.do("submit", key, model, submission, webhook, refused, idempotency)

    @rule(key=KEYS, model=MODELS, submission=INPUTS)
    def submit_more(self, key, model, submission):
        self.do("submit", key, model, submission, "https://hook", False, None)

    @rule(
        models=st.sampled_from([[MODEL], [OTHER], [MODEL, OTHER]]),
        worker=WORKERS,
        tasks=st.integers(1, 5),
        work=st.integers(1, 6),
        has_tasks=st.booleans(),
        reserved=st.booleans(),
    )
    def claim(self, models, worker, tasks, work, has_tasks, reserved):
        self.claims += self.do("claim", models, worker, LEASE_S * 1000, tasks, work * WORK, has_tasks, reserved)

    @rule(
        models=st.sampled_from([[MODEL], [OTHER], [MODEL, OTHER]]),
        worker=WORKERS,
        tasks=st.integers(1, 3),
        work=st.integers(1, 6),
        excluded_keys=st.frozensets(KEYS, max_size=2),
    )
    def claim_beside(self, models, worker, tasks, work, excluded_keys):
        self.claims += self.do("claim_beside", models, worker, LEASE_S * 1000, tasks, work * WORK, excluded_keys)

    @rule(worker=WORKERS)
    def renew(self, worker):
        self.do("renew", worker, LEASE_S * 1000)

    @precondition(lambda self: self.claims)
    @rule(worker=WORKERS, which=st.lists(ANY, max_size=4), step=ANY, preview=st.none() | st.just(b"jpeg"))
    def report(self, worker, which, step, preview):
        held = {self.claims[-1 - i % len(self.claims)]: (step, 28, preview) for i in which}
        self.do("report", worker, held)

    @precondition(lambda self: self.claims)
    @rule(which=ANY)
    def watch(self, which):
        self.do("watch", self.claims[-1 - which % len(self.claims)][0], 5000)

    @precondition(lambda self: self.claims)
    @rule(which=ANY, flagged=st.booleans())
    def complete(self, which, flagged):
        self.do("complete", *self.claims[-1 - which % len(self.claims)], (flagged,), 9, ("“long”",))

    @precondition(lambda self: self.claims)
    @rule(which=ANY)
    def fail(self, which):
        self.do("fail", *self.claims[-1 - which % len(self.claims)], 1405, "no")

    @precondition(lambda self: self.claims)
    @rule(which=ANY, quarantined=st.booleans())
    def requeue(self, which, quarantined):
        self.do("requeue", *self.claims[-1 - which % len(self.claims)], quarantined)

    @rule(worker=WORKERS, models=st.sampled_from([[MODEL], [OTHER], [MODEL, OTHER]]))
    def register(self, worker, models):
        self.do("register", worker, models)

    @rule(worker=WORKERS)
    def beat(self, worker):
        self.do("beat", worker)

    @rule(unserved_ms=st.sampled_from([5000, 60_000, DAY_MS // 2]))
    def abandon(self, unserved_ms):
        self.do("abandon", unserved_ms)

    @rule(worker=st.none() | WORKERS)
    def recover(self, worker):
        self.do("recover", worker)

    @precondition(lambda self: any(task.status == "processing" for task in self.plain.tasks.values()))
    @rule(worker=WORKERS)
    def lose_and_claim_again(self, worker):
        self.tick((LEASE_S + 1) * 1000)
        self.do("recover", None)
        self.claim([MODEL, OTHER], worker, 5, 10 * QUEUE_MAX, has_tasks=False, reserved=False)

    def stale(self):
        """Claims of tasks that somebody else has now."""
        of = {task.number: task.attempt for task in self.plain.tasks.values() if task.status == "processing"}
        return [(number, attempt) for number, attempt in self.claims if attempt < of.get(number, 0)]

    @precondition(stale)
    @rule(which=ANY, move=st.sampled_from(["complete", "fail", "requeue", "report"]))
    def come_too_late(self, which, move):
        stale = self.stale()
        claim = stale[which % len(stale)]
        if move == "report":
            worker = self.plain.tasks[claim[0]].worker_id
            assert self.do("report", worker, {claim: (3, 28, b"late")}) == set()
        else:
            said = {"complete": ((True,), 9, ()), "fail": (1405, "late"), "requeue": (True,)}
            assert self.do(move, *claim, *said[move]) is False

    @precondition(lambda self: self.plain.made)
    @rule(which=ANY, key=st.none() | KEYS)
    def cancel(self, which, key):
        self.do("cancel", self.number(which), self.owner(which, key))

    @precondition(lambda self: self.plain.made)
    @rule(which=st.lists(ANY, min_size=1, max_size=3), key=st.none() | KEYS)
    def delete(self, which, key):
        self.do("delete", [self.number(i) for i in which], self.owner(which[0], key))

    @rule(age_ms=st.sampled_from([0, 60_000, DAY_MS]))
    def expire(self, age_ms):
        self.do("expire", self.plain.now - age_ms)

    @rule()
    def sweep(self):
        self.do("sweep")

    @rule()
    def claim_deliveries(self):
        self.sent += self.do("claim_deliveries", 3000).values()

    @precondition(lambda self: self.sent)
    @rule(which=ANY, state=st.sampled_from(list(DeliveryState)), again_in_ms=st.sampled_from([0, 4000]))
    def settle(self, which, state, again_in_ms):
        self.do("settle", self.sent[-1 - which % len(self.sent)], state.value, 500, "HTTP 500", again_in_ms)

    @precondition(lambda self: self.plain.made)
    @rule(which=ANY, key=st.none() | KEYS)
    def replay(self, which, key):
        self.do("replay", self.number(which), self.owner(which, key))

    @precondition(lambda self: self.plain.made)
    @rule(
        which=ANY,
        key=KEYS,
        page=st.integers(1, 3),
        model=st.none() | MODELS,
        status=st.none() | st.sampled_from(Status),
        age_ms=st.sampled_from([None, 60_000]),
    )
    def look(self, which, key, page, model, status, age_ms):
        self.do("get", self.number(which), key)
        self.do("get", self.number(which), self.owner(which, None))
        self.do("listed", key, page, 3, model, status, age_ms and self.plain.now - age_ms)
        self.do("ended")
        waiting = [task.number for task in self.plain.tasks.values() if task.status == "created"]
        if waiting:
            self.do("before", waiting[which % len(waiting)])

    def owner(self, which, key):
        """The key itself, or whoever made the task."""
        task = self.plain.tasks.get(self.number(which))
        return task.key if key is None and task else key or 0

    # --- what always holds ---

    @invariant()
    def rows_are_equal(self):
        if self.before_step is None:
            return
        expected = plain_rows(self.plain)
        for real, rows in zip(self.reals, self.run(*(real.rows() for real in self.reals)), strict=True):
            rows["repeats"] = self.remembered(rows["repeats"])
            assert rows == expected | {"repeats": self.remembered(expected["repeats"])}, real.database
            self.check(self.before_step, rows)
        self.before_step = expected

    def remembered(self, repeats):
        return {name: value for name, value in repeats.items() if value[2] > self.plain.now - DAY_MS}

    def check(self, before, after):
        """What the rows must obey, whatever the plain store says."""
        if self.answer is False:
            assert after["tasks"] == before["tasks"]
            assert after["deliveries"] == before["deliveries"]
        for number in before["tasks"].keys() | after["tasks"].keys():
            self.check_move(before["tasks"].get(number), after["tasks"].get(number))
        for key, turn in before["turns"].items():
            assert after["turns"][key] >= turn
        assert after["serving"] >= before["serving"]
        for n, task in after["tasks"].items():
            owes = bool(task["webhook"]) and Status(task["status"]).final
            assert (n in after["deliveries"]) == owes
        self.check_limits(after["tasks"].values())

    def check_move(self, before, after):
        if before is None:
            assert after["status"] in ("created", "failed")
        elif after is None:
            assert before["status"] == "deleted"
        elif before["status"] != after["status"]:
            assert (before["status"], after["status"]) in ARROWS
        if before and after and Status(before["status"]).final:
            may_change = ("status", "has_files")
            assert {n: v for n, v in before.items() if n not in may_change} == {
                n: v for n, v in after.items() if n not in may_change
            }

    def check_limits(self, tasks):
        unfinished = [task for task in tasks if not Status(task["status"]).final]
        assert len(unfinished) <= QUEUE_MAX
        for key, may in enumerate(LIMITS):
            mine = [task for task in tasks if task["key"] == key]
            assert not may.tasks_max or sum(task["key"] == key for task in unfinished) <= may.tasks_max
            minute = [task for task in mine if task["created_ms"] > self.plain.now - 60_000]
            assert not may.requests_per_minute or len(minute) <= may.requests_per_minute
            day = [task["pixels"] for task in mine if task["created_ms"] > self.plain.now - DAY_MS]
            assert not may.pixels_per_day or sum(day) <= may.pixels_per_day
            work = [task["work"] for task in mine if task["created_ms"] > self.plain.now - DAY_MS]
            assert not may.work_per_day or sum(work) <= may.work_per_day
            assert sum(task["key"] == key for task in unfinished) <= QUEUE_MAX * QUEUE_SHARE


def drive(clock, urls, examples, phases=(Phase.generate, Phase.shrink)):
    """Run the machine; count the operations that were done, by whether they had something to do."""
    steps = Counter()

    async def opened(url):
        opening = Database.open(url, clock)
        return opening, await opening.__aenter__()

    with asyncio.Runner() as runner:
        openings = [runner.run(opened(url)) for url in urls]
        try:
            reals = [Real(database, Enqueuer(database, QUEUE_MAX, QUEUE_SHARE)) for _, database in openings]
            how = settings(
                max_examples=examples,
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=phases,
            )
            run_state_machine_as_test(lambda: Store(runner, clock, reals, steps), settings=how)
        finally:
            for opening, _ in openings:
                runner.run(opening.__aexit__(None, None, None))
    return steps


@pytest.mark.timeout(1800)
def test_any_order_of_operations_gives_what_the_plain_store_says(clock, sqlite_url, postgresql_url):
    long = settings.get_current_profile_name() == "long"
    steps = drive(clock, [sqlite_url, postgresql_url], 250 if long else 12)
    assert steps.total() >= (5000 if long else 300)
    if long:
        named = {name for name in vars(Plain) if not name.startswith("_") and callable(getattr(Plain, name))}
        assert named <= {name for name, worked in steps if worked} | {"watch", "register", "beat"}, (
            "every operation has done something"
        )
        fenced = {"complete", "fail", "requeue", "settle", "report", "cancel", "replay"}
        assert fenced <= {name for name, worked in steps if not worked}, "and every one that may be refused, was"


async def without_its_attempt(database, task, move, **values):
    statement = predictions.transition(move).where(PREDICTIONS.c.id == task.id)
    async with database.write() as connection:
        statement = statement.values(worker_id=None, lease_until_ms=None, **values)
        return await predictions._end(connection, statement, database.now_ms()) == 1


async def owing_nothing(connection, statement, _now):
    return len((await connection.execute(statement.returning(PREDICTIONS.c.id))).all())


FAULTS = {
    "missing fence": (predictions, "_leave_processing", without_its_attempt),
    "lost webhook": (predictions, "_end", owing_nothing),
    "suspected beside others": (claims, "fitting", lambda waiting, room: waiting[: room.tasks]),
    "half a minute": (admission, "MINUTE_MS", 30_000),
    "short memory": (enqueue, "IDEMPOTENCY_MS", 3_600_000),
    "no last places": (admission, "NEW_KEY_SHARE", 0.0),
    "served and abandoned": (predictions, "_all_of", lambda _models: set()),
}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(clock, sqlite_url, postgresql_url, monkeypatch, fault):
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(AssertionError):
        drive(clock, [sqlite_url, postgresql_url], 3000, phases=[Phase.generate])  # 5 to 320 were needed
