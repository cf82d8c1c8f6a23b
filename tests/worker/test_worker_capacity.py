"""A worker's capacity and its reserve: random workloads, and the promises that hold for them.

The worker's own numbers and the store's own choice, on a queue that is a list: `tests/store` has the same in SQL.
"""

import asyncio
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

import pytest

from hidream.request import ImageRequest
from hidream.settings.tables import Worker as Limits
from hidream.store.claims import fitting, for_reserve
from hidream.store.prediction import Prediction
from hidream.types import USUAL_WORK, Size, Status, Step
from hidream.worker.capacity import capacity_work, free_capacity, free_reserve
from hidream.worker.generation import Job
from hidream.worker.progress import TaskProgress

LIVES = 100
UNIT = USUAL_WORK // 64


TASK = Prediction(
    id="",
    key_id="",
    model="",
    input=ImageRequest("a house", Size(64, 64), 0),
    output_name="",
    status=Status.CREATED,
    code=0,
    error="",
    version="",
    nsfw=(),
    created_ms=0,
    started_ms=None,
    finished_ms=None,
    inference_ms=0,
    warnings=(),
    attempt=1,
    workers_lost=0,
    pixels=0,
    work=0,
    virtual_start=0,
    base_url="",
    webhook="",
    step=0,
    steps=0,
)


@dataclass
class Life:
    """A worker, its queue, and the turns that `store/admission` gives."""

    limits: Limits
    waiting: list[Prediction] = field(default_factory=list)
    claimed: list[Prediction] = field(default_factory=list)
    next_turn: dict[str, int] = field(default_factory=dict)
    serving: int = 0
    numbers: count = field(default_factory=count)
    jobs: dict[tuple, Job] = field(default_factory=dict)

    def submit(self, key_id, work, workers_lost=0):
        virtual_start = max(self.next_turn.get(key_id, 0), self.serving)
        self.next_turn[key_id] = virtual_start + work
        task = replace(
            TASK,
            id=f"{next(self.numbers):06}",
            key_id=key_id,
            work=work,
            virtual_start=virtual_start,
            workers_lost=workers_lost,
        )
        self.waiting.append(task)
        self.waiting.sort(key=lambda task: (task.virtual_start, task.id))
        return task

    def fill(self):
        """What the loop does in a round."""
        while self.fill_room() or self.fill_reserve():
            self.check()

    def fill_room(self):
        room = free_capacity(self.jobs.values(), self.limits)
        if room is None:
            return []
        taken = list(fitting(self.waiting[: room.tasks], room))
        assert taken == self.waiting[: len(taken)], "nobody is passed over in the room"
        if not self.jobs and self.waiting:
            assert taken, "an empty worker takes whoever is next, however much work that is"
        self.serving = max([self.serving, *(task.virtual_start for task in taken)])
        return self.take(taken, reserved=False)

    def fill_reserve(self):
        reserve = free_reserve(self.jobs.values(), self.limits)
        if reserve is None:
            return []
        fit = [t for t in self.waiting if not t.workers_lost and t.key_id not in reserve.excluded_keys]
        ids = for_reserve([t for t in fit if t.work <= reserve.work // 2], reserve)
        return self.take([task for task in fit if task.id in ids], reserved=True)

    def take(self, tasks, reserved):
        for task in tasks:
            self.waiting.remove(task)
            self.claimed.append(task)
            self.jobs[task.id, 1] = Job(task, TaskProgress(1), asyncio.Event(), reserved)
        return tasks

    def draw(self, job, steps=1):
        """Draw a sixteenth, or more, of a task."""
        progress = job.progress
        done = min(16, progress._done[0] + steps)
        progress.listener(0).on_step(Step(done, 16))
        if done == 16:
            del self.jobs[job.task.id, 1]

    def check(self):
        """Never more than the limits, and one of each key beside them."""
        room = [job for job in self.jobs.values() if not job.reserved]
        beside = [job for job in self.jobs.values() if job.reserved]
        assert len(room) <= self.limits.tasks_max
        assert len(room) == 1 or sum(job.work_left for job in room) <= capacity_work(self.limits)
        assert len(beside) <= max(1, self.limits.tasks_max // 2)
        assert sum(job.work_left for job in beside) < capacity_work(self.limits) / 2
        assert len({job.task.key_id for job in beside}) == len(beside)
        if any(job.task.workers_lost for job in self.jobs.values()):
            assert len(self.jobs) == 1, "what is suspected is alone"


@pytest.mark.parametrize("block", range(3))
def test_random_lives_keep_within_the_limits_and_leave_nobody(block):
    for seed in range(block * LIVES, (block + 1) * LIVES):
        random = Random(seed)
        life = Life(Limits(tasks_max=random.choice((1, 2, 8)), pictures_max=random.choice((0.5, 2.0, 16.0))))
        for _ in range(random.randint(5, 30)):
            for _ in range(random.choice((0, 1, 4))):
                work = UNIT * random.choice((1, 2, 60, 2000, random.randint(1, 300)))
                life.submit(random.choice("abcd"), work, random.choice((0,) * 9 + (1,)))
            life.fill()
            for job in random.sample(list(life.jobs.values()), random.randint(0, len(life.jobs))):
                life.draw(job, random.randint(1, 16))
        rounds = 0
        while life.waiting or life.jobs:
            life.fill()
            for job in list(life.jobs.values()):
                life.draw(job)
            rounds += 1
            assert rounds <= 16 * (len(life.claimed) + len(life.waiting)), "somebody is never drawn"


def test_a_huge_task_does_not_keep_out_a_small_one_nor_small_ones_a_huge_one():
    """A stream of small ones, and two huge ones: the second is drawn as soon as the first has ended."""
    life = Life(Limits())
    first, second = life.submit("first", 64 * USUAL_WORK), life.submit("second", 64 * USUAL_WORK)
    life.fill()
    waited = []
    for number in range(100):
        small = life.submit(f"small {number % 3}", UNIT)
        life.fill()
        waited.append(small in life.waiting)
        for job in sorted(life.jobs.values(), key=lambda job: job.work_left)[:2]:  # shortest first, as the engine does
            life.draw(job, 16 if job.task.work == UNIT else 1)
    assert not any(waited)
    large = [task for task in life.claimed if task in (first, second)]
    assert large == [first, second]
    assert (second.id, 1) in life.jobs or second not in life.waiting


def test_what_is_left_of_a_task_is_what_counts():
    life = Life(Limits(pictures_max=2.0))
    one, two = life.submit("a", USUAL_WORK), life.submit("a", 2 * USUAL_WORK)
    life.fill()
    assert life.claimed == [one]
    life.draw(life.jobs[one.id, 1], 15)
    three = life.submit("b", USUAL_WORK // 2)
    assert free_capacity(life.jobs.values(), life.limits).work == 2 * USUAL_WORK - USUAL_WORK // 16
    life.fill()
    assert life.claimed == [one, three], "the second needs all of the room, and the third is before it"
    life.draw(life.jobs[one.id, 1])
    life.draw(life.jobs[three.id, 1], 16)
    life.fill()
    assert life.claimed == [one, three, two]


def test_a_key_has_one_task_in_a_reserve_and_none_if_it_has_any_in_the_room():
    life = Life(Limits(tasks_max=2))
    for key in "aaaabbbc":
        life.submit(key, UNIT)
    life.fill()
    assert sorted((job.task.key_id, job.reserved) for job in life.jobs.values()) == [
        ("a", False),
        ("b", False),
        ("c", True),
    ]
