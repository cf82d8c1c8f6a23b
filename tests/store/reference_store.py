"""A reference implementation of the store in plain Python, written from its documentation, not from its SQL.

Tasks are known by the number in which they came, keys by their place in a list, deliveries by their task's number.
"""

from dataclasses import dataclass, field, replace

from hidream.request import ImageRequest
from hidream.store.keys import Limits

MINUTE_MS, DAY_MS = 60_000, 86_400_000
STEPS = {"dev": 28, "full": 50, "fast": 16}


@dataclass
class Task:
    number: int
    key: int
    model: str
    input: ImageRequest
    created_ms: int
    virtual_start: int
    webhook: str
    status: str = "created"
    code: int = 0
    error: str = ""
    version: str = ""
    nsfw: tuple = ()
    warnings: tuple = ()
    inference_ms: int = 0
    started_ms: int | None = None
    finished_ms: int | None = None
    attempt: int = 0
    workers_lost: int = 0
    worker_id: str | None = None
    lease_until_ms: int | None = None
    pixels: int = 0
    work: int = 0
    step: int = 0
    steps: int = 0
    watched_until_ms: int = 0
    has_files: bool = True

    @property
    def unfinished(self):
        return self.status in ("created", "processing")

    @property
    def order(self):
        return (self.virtual_start, self.created_ms)


@dataclass
class Delivery:
    number: int
    url: str
    created_ms: int
    due_ms: int
    state: str = "waiting"
    attempts: int = 0
    status_code: int | None = None
    error: str = ""
    finished_ms: int | None = None


@dataclass
class Plain:
    limits: list[Limits]
    queue_max: int
    queue_share: float
    workers_max: int
    now: int = 1_700_000_000_000
    tasks: dict[int, Task] = field(default_factory=dict)
    previews: dict[int, tuple] = field(default_factory=dict)
    deliveries: dict[int, Delivery] = field(default_factory=dict)
    repeats: dict[tuple, tuple] = field(default_factory=dict)
    seen: dict[str, tuple] = field(default_factory=dict)
    next_turn: dict[int, int] = field(default_factory=dict)
    serving: int = 0
    made: int = 0

    # --- taking in ---

    def submit(self, key, model, submission, webhook, refused, idempotency):
        """Give ("task", number), or the error's name and what a client is told to wait."""
        if idempotency is not None:
            name, body = idempotency
            known = self.repeats.get((key, name))
            if known and known[2] > self.now - DAY_MS:
                return ("task", known[1]) if known[0] == body else ("Conflict", None)
        images = submission.num_images
        steps = submission.steps or STEPS[model.rpartition("-")[2]]
        pixels = submission.size.width * submission.size.height
        work = pixels * images * steps
        if self._never(key, steps, pixels, images):
            return "Forbidden", None
        refusal = self._too_many(key, pixels * images, work, refused)
        if refusal:
            return refusal
        number, self.made = self.made, self.made + 1
        virtual_start = max(self.next_turn.get(key, 0), self.serving)
        task = Task(number, key, model, submission, self.now, virtual_start, webhook)
        self.tasks[number] = task
        if refused:
            task.status, task.code, task.error, task.finished_ms = "failed", 1200, "no", self.now
            self._owe(task)
        else:
            task.pixels, task.work = pixels * images, work
            self.next_turn[key] = virtual_start + work
        if idempotency is not None:
            self.repeats[key, name] = body, number, self.now
        return "task", number

    def _never(self, key, steps, pixels, images):
        may = self.limits[key]
        return (
            0 < may.steps_max < steps
            or 0 < may.pixels_max < pixels
            or 0 < may.images_max < images
            or 0 < may.pixels_per_day < pixels * images
            or 0 < may.work_per_day < pixels * images * steps
        )

    def _too_many(self, key, pixels, work, refused):
        may, mine = self.limits[key], [task for task in self.tasks.values() if task.key == key]
        minute = [task.created_ms for task in mine if task.created_ms > self.now - MINUTE_MS]
        day = [task for task in mine if task.created_ms > self.now - DAY_MS]
        unfinished = sum(task.unfinished for task in self.tasks.values())
        mine_unfinished = sum(task.unfinished for task in mine)
        free_to_who_has_some = self.queue_max - self.queue_max // 10
        if not refused and (
            unfinished >= self.queue_max
            or mine_unfinished >= max(1, int(self.queue_max * self.queue_share))
            or (mine_unfinished and unfinished >= free_to_who_has_some)
        ):
            return "TooMany", 5
        if may.requests_per_minute and len(minute) >= may.requests_per_minute:
            return "TooMany", self._until(min(minute) + MINUTE_MS)
        if may.tasks_max and mine_unfinished >= may.tasks_max:
            return "TooMany", 5
        if (may.pixels_per_day and sum(task.pixels for task in day) + pixels > may.pixels_per_day) or (
            may.work_per_day and sum(task.work for task in day) + work > may.work_per_day
        ):
            return "TooMany", self._until(min([task.created_ms for task in day], default=self.now) + DAY_MS)
        return None

    def _until(self, then_ms):
        return max(1, -((self.now - then_ms) // 1000))

    # --- workers that are there ---

    def register(self, worker, models):
        """A worker serves some models; whether it has left, or when it was seen last, `seen` says."""
        stale = [w for w, (of, at) in self.seen.items() if at < self.now - DAY_MS and set(of) <= set(models)]
        for one in stale:
            del self.seen[one]
        self.seen[worker] = models, self.now

    def beat(self, worker):
        if worker in self.seen:
            self.seen[worker] = self.seen[worker][0], self.now

    def abandon(self, unserved_ms):
        before = self.now - unserved_ms
        served = {model for models, at in self.seen.values() if at > before for model in models}
        waiting = [task for task in self.tasks.values() if task.status == "created" and task.created_ms <= before]
        alone = [task for task in waiting if task.model not in served]
        for task in alone:
            task.code, task.error = 1405, f"no worker that serves its model was seen for {unserved_ms / 1000:g} seconds"
            self._end(task, "failed")
        return len(alone)

    # --- drawing ---

    def claim(self, models, worker, lease_ms, tasks, work, has_tasks, reserved):
        waiting = sorted(
            (t for t in self.tasks.values() if t.status == "created" and t.model in models), key=lambda t: t.order
        )
        taken = []
        for task in waiting[:tasks]:
            if task.workers_lost:
                if not taken and not has_tasks and not reserved:
                    taken = [task]
                break
            must = not taken and not has_tasks
            if sum(t.work for t in taken) + task.work > work and not must:
                break
            taken.append(task)
        self.serving = max([self.serving, *(task.virtual_start for task in taken)])
        return self._take(taken, worker, lease_ms)

    def claim_beside(self, models, worker, lease_ms, tasks, work, excluded_keys):
        waiting = [t for t in self.tasks.values() if t.status == "created" and t.model in models and not t.workers_lost]
        taken = []
        for task in sorted(waiting, key=lambda t: t.order):
            of_others = task.key not in excluded_keys and task.key not in [t.key for t in taken]
            if of_others and len(taken) < tasks and task.work <= work - task.work:
                taken.append(task)
                work -= task.work
        return self._take(taken, worker, lease_ms)

    def _take(self, taken, worker, lease_ms):
        for task in taken:
            task.status, task.attempt, task.step = "processing", task.attempt + 1, 0
            task.started_ms, task.worker_id, task.lease_until_ms = self.now, worker, self.now + lease_ms
            task.version = f"v1-{task.input.mode}"
        return [(task.number, task.attempt) for task in taken]

    def renew(self, worker, lease_ms):
        held = [task for task in self.tasks.values() if task.status == "processing" and task.worker_id == worker]
        for task in held:
            task.lease_until_ms = self.now + lease_ms
        return {(task.number, task.attempt, task.watched_until_ms > self.now) for task in held}

    def report(self, worker, steps):
        """`steps` says of (number, attempt): step, steps, preview."""
        held = set()
        for (number, attempt), (step, of, preview) in steps.items():
            task = self._held(number, attempt)
            if task is None or task.worker_id != worker:
                continue
            task.step, task.steps = step, of
            held.add((number, attempt, task.watched_until_ms > self.now))
            if preview is not None:
                self.previews[number] = step, preview
        return held

    def watch(self, number, for_ms):
        task = self.tasks.get(number)
        if task and task.status == "processing":
            task.watched_until_ms = self.now + for_ms

    def complete(self, number, attempt, nsfw, inference_ms, warnings):
        task = self._held(number, attempt)
        if task:
            task.nsfw, task.inference_ms, task.warnings = nsfw, inference_ms, warnings
            self._end(task, "completed")
        return task is not None

    def fail(self, number, attempt, code, error):
        task = self._held(number, attempt)
        if task:
            task.code, task.error = code, error
            self._end(task, "failed")
        return task is not None

    def requeue(self, number, attempt, quarantined):
        task = self._held(number, attempt)
        if task:
            task.workers_lost += quarantined
            self._return(task)
        return task is not None

    def recover(self, worker):
        lost = [t for t in self.tasks.values() if t.status == "processing"]
        lost = [t for t in lost if t.lease_until_ms < self.now or t.worker_id == worker]
        for task in lost:
            task.workers_lost += 1
            if task.workers_lost < self.workers_max:
                self._return(task)
            else:
                task.code = 1405
                task.error = f"the worker was lost {self.workers_max} times while it generated this task"
                self._end(task, "failed")
        return len(lost)

    def _held(self, number, attempt):
        task = self.tasks.get(number)
        return task if task and task.status == "processing" and task.attempt == attempt else None

    def _return(self, task):
        task.status, task.started_ms, task.step = "created", None, 0
        task.worker_id = task.lease_until_ms = None

    def _end(self, task, status):
        task.status, task.finished_ms = status, self.now
        task.worker_id = task.lease_until_ms = None
        self.previews.pop(task.number, None)
        self._owe(task)

    def _owe(self, task):
        if task.webhook:
            assert task.number not in self.deliveries, "one end owes one webhook"
            self.deliveries[task.number] = Delivery(task.number, task.webhook, self.now, self.now)

    # --- by its client, and by time ---

    def cancel(self, number, key):
        task = self.tasks.get(number)
        mine = task is not None and task.key == key and task.unfinished
        if mine:
            task.error = "cancelled by its client"
            self._end(task, "cancelled")
        return mine

    def delete(self, numbers, key):
        found = [self.tasks[n] for n in set(numbers) if n in self.tasks and self.tasks[n].key == key]
        return self._hide(found)

    def expire(self, older_than_ms):
        return self._hide([task for task in self.tasks.values() if task.created_ms < older_than_ms])

    def _hide(self, tasks):
        over = [task for task in tasks if not task.unfinished and task.status != "deleted"]
        for task in over:
            task.status = "deleted"
        return len(over)

    def sweep(self):
        """What `remains` names, and then what `forget` does."""
        deleted = [task for task in self.tasks.values() if task.status == "deleted"]
        due = [task for task in deleted if task.has_files or task.created_ms <= self.now - DAY_MS]
        for task in due:
            task.has_files = False
            if task.created_ms <= self.now - DAY_MS:
                del self.tasks[task.number]
                self.deliveries.pop(task.number, None)
                self.repeats = {name: value for name, value in self.repeats.items() if value[1] != task.number}
        return {task.number for task in due}

    # --- webhooks ---

    def claim_deliveries(self, lease_ms):
        due = [d for d in self.deliveries.values() if d.state == "waiting" and d.due_ms <= self.now]
        for delivery in due:
            delivery.due_ms = self.now + lease_ms
            delivery.attempts += 1
        return {delivery.number: replace(delivery) for delivery in due}

    def settle(self, claimed, state, status_code, error, again_in_ms):
        delivery = self.deliveries.get(claimed.number)
        if delivery is None or delivery != claimed:
            return False
        delivery.state, delivery.status_code, delivery.error = state, status_code, error
        delivery.due_ms = self.now + again_in_ms
        delivery.finished_ms = None if state == "waiting" else self.now
        return True

    def replay(self, number, key):
        delivery = self.deliveries.get(number)
        if delivery is None or self.tasks[number].key != key:
            return False
        delivery.state, delivery.due_ms, delivery.attempts = "waiting", self.now, 0
        delivery.error, delivery.finished_ms = "", None
        return True

    # --- looking ---

    def get(self, number, key):
        task = self.tasks.get(number)
        return None if task is None or task.key != key or task.status == "deleted" else number

    def listed(self, key, page, page_size, model, status, after_ms):
        found = [t for t in self.tasks.values() if t.key == key and t.status != "deleted"]
        found = [t for t in found if model in (None, t.model) and status in (None, t.status)]
        found = [t for t in found if after_ms is None or t.created_ms >= after_ms]
        newest = [t.number for t in sorted(found, key=lambda t: -t.created_ms)]
        return len(found), newest[(page - 1) * page_size : page * page_size]

    def before(self, number):
        """How many go before a task that waits."""
        task = self.tasks[number]
        return sum(
            t.status == "created" and t.model == task.model and t.order < task.order for t in self.tasks.values()
        )

    def ended(self):
        return {task.number for task in self.tasks.values() if not task.unfinished}
