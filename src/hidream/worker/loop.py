"""The worker's life: claim tasks, have them drawn together, and say what became of each.

How many at a time says its *room*, `tasks_max` and `pictures_max`, of which a task takes what is left of it to be
drawn. Beside the room it has a *reserve*, half as large, for keys that have nothing here (`store/predictions`): so that
another key's task of any size does not hold up a small one. The engine draws the small one first.

Beside that it keeps its row and its leases fresh, writes down how far its drawings are, and gives up what is no longer
its own: tasks that were cancelled, and those whose lease was lost nevertheless. Those that are being drawn when it is
told to stop may be finished for a while; then they go back to the queue.

A task that has lost a worker may be what killed it, or may only have been beside: nobody knows. So it is drawn alone,
after the others have come to their end, and what happens then is its own doing. Therefore a task that kills every
worker costs the tasks beside it one worker, and no more.

A database that is away ends nothing: drawings go on, and what came of them is said when it is back. If leases have
ended meanwhile, each worker leaves the others the time to renew theirs; after that, the attempt decides what counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial

from hidream.errors import DatabaseUnavailable, HiDreamError, Interrupted, ObjectStoreUnavailable, TaskFailed
from hidream.settings.tables import Worker as WorkerSettings
from hidream.store import history, predictions, workers
from hidream.store.database import Database
from hidream.store.prediction import Prediction
from hidream.store.predictions import Capacity, Lease, ReserveCapacity, StepReport
from hidream.store.workers import Worker
from hidream.types import USUAL_STEPS
from hidream.worker.bridge import Bridge
from hidream.worker.failure import out_of_memory, reason
from hidream.worker.generation import Generated, Job, Tools, generate
from hidream.worker.progress import ProgressUpdate, preview_jpeg
from hidream.worker.retry import retry_unavailable

IDLE_S = 1.0
"""How often a worker with room looks for tasks that other workers have lost."""
RESERVE_CHECK_S = 0.05
"""How often it looks at most whether anything fits into its reserve: commits come by hundreds a second."""
PROGRESS_S = 0.5
"""How often it says how far its drawings are, and looks whether one was cancelled."""
SHUTDOWN_RETRY_S = 5.0
"""How long it tries to hand a task back, or to take leave, while the database is away: whoever told it to stop waits no
longer than twice that. A task that is not handed back is taken up when its lease has ended."""
ERROR_MAX_CHARS = 1000
"""Of an error that nobody foresaw; some have a whole tensor in their text."""
IMAGE_WORK = 1024 * 1024 * USUAL_STEPS
"""What `pictures_max` counts in: pixel steps of a usual picture."""

RESERVE_SHARE = 0.5
"""What a worker has beside its room, of that; one task at least."""

Claim = tuple[str, int]
"""A task's id and attempt: what this worker holds."""
RecordOutcome = Callable[[], Awaitable[bool]]
"""Tells the store what became of a task; False if it was no longer this claim's."""

logger = logging.getLogger(__name__)


class WorkerLoop:
    """One worker at work, on a bridge that drives an engine for each of its models."""

    def __init__(
        self, database: Database, bridge: Bridge, worker: Worker, tools: Tools, limits: WorkerSettings
    ) -> None:
        self._database = database
        self._bridge = bridge
        self._worker = worker
        self._tools = tools
        self._limits = limits
        self._jobs: dict[Claim, Job] = {}
        self._left = asyncio.Event()  # a job has ended
        self._claims = 0  # begun and ended: odd while the answer to one is awaited
        self._unknown: dict[Claim, int] = {}  # held without a job, and what `_claims` was when that was noticed
        self._unavailable_at = -math.inf  # when the database was last found to be away
        self._recover_at = -math.inf  # when tasks of lost workers are looked for again
        self._beside_at = -math.inf  # when it may look again for what fits into the reserve
        self._beside_due = False  # it would have looked, had it been allowed to
        self._seen = -1  # the database's version when it was last looked for cancelled tasks

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set, or the bridge is broken."""
        try:
            await retry_unavailable(self._register, stopping, "register")
        except Interrupted:
            return
        logger.info("worker_ready id=%s models=%s", self._worker.id, ",".join(self._worker.models))
        async with asyncio.TaskGroup() as beside:
            running = [beside.create_task(self._maintain()), beside.create_task(self._stop_when(stopping))]
            async with asyncio.TaskGroup() as drawing:
                with contextlib.suppress(Interrupted):
                    await self._work(drawing, stopping)
            for task in running:
                task.cancel()
        await self._leave()
        logger.info("worker_stopped id=%s", self._worker.id)

    async def _register(self) -> None:
        # a worker of this id that died, as process 1 of a container that was started anew has, holds nothing any more
        await predictions.recover(self._database, self._limits.attempts_max, self._worker.id)
        await workers.register(self._database, self._worker)

    async def _leave(self) -> None:
        try:
            leave = partial(workers.deregister, self._database, self._worker.id)
            await retry_unavailable(leave, asyncio.Event(), "leave", within_s=SHUTDOWN_RETRY_S)
        except DatabaseUnavailable as error:
            logger.warning("worker_deregister_failed id=%s error=%s", self._worker.id, error.message)

    # --- what there is to do ---------------------------------------------------------------------------------------

    async def _work(self, drawing: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        """Take tasks as long as there is room, and wait for news when there is not, or nothing to take."""
        changes = self._database.changes
        while not (changes.stopped or self._bridge.broken):
            self._left.clear()
            seen = changes.version()
            jobs = await self._claim_in_order(stopping) or await self._claim_for_reserve(stopping)
            for job in jobs:
                drawing.create_task(self._run_job(job))
            await retry_unavailable(self._recover, stopping, "recover")
            if not jobs:
                await self._wait_for_change(seen)

    async def _claim_in_order(self, stopping: asyncio.Event) -> list[Job]:
        """Claim what there is room for, in its turn."""
        room = self._capacity()
        if room is None:
            return []
        tasks = await retry_unavailable(partial(self._claim, predictions.claim, room), stopping, "claim")
        return [self._add_job(task) for task in tasks]

    async def _claim_for_reserve(self, stopping: asyncio.Event) -> list[Job]:
        """Claim what fits beside the room, whether it is its turn or not."""
        reserve, clock = self._reserve(), asyncio.get_running_loop().time
        self._beside_due = reserve is not None and clock() < self._beside_at
        if reserve is None or self._beside_due:
            return []
        tasks = await retry_unavailable(partial(self._claim, predictions.claim_reserve, reserve), stopping, "claim")
        self._beside_at = -math.inf if tasks else clock() + RESERVE_CHECK_S
        return [self._add_job(task, reserved=True) for task in tasks]

    def _capacity(self) -> Capacity | None:
        """How much may be taken in its turn, beside what is here; None if nothing."""
        jobs = [job for job in self._jobs.values() if not job.reserved]
        tasks = self._limits.tasks_max - len(jobs)
        work = self._capacity_work - sum(job.work_left for job in jobs)
        if tasks <= 0 or (jobs and work <= 0) or self._has_quarantined:
            return None
        return Capacity(tasks, work, has_tasks=bool(jobs), reserved=len(jobs) < len(self._jobs))

    def _reserve(self) -> ReserveCapacity | None:
        """How much may be taken beside the room; None if nothing, or if the room is empty: whoever is next takes that.

        So what is suspected, and needs the worker for itself, waits no longer than what was here before it.
        """
        jobs = [job for job in self._jobs.values() if job.reserved]
        tasks = max(1, int(RESERVE_SHARE * self._limits.tasks_max)) - len(jobs)
        work = int(RESERVE_SHARE * self._capacity_work) - sum(job.work_left for job in jobs)
        if tasks <= 0 or work <= 0 or len(jobs) == len(self._jobs) or self._has_quarantined:
            return None
        return ReserveCapacity(tasks, work, frozenset(job.task.key_id for job in self._jobs.values()))

    @property
    def _capacity_work(self) -> int:
        """The room's work, in pixel steps."""
        return round(self._limits.pictures_max * IMAGE_WORK)

    @property
    def _has_quarantined(self) -> bool:
        """Whether what is here is suspected, and nothing may be beside it."""
        return any(job.task.workers_lost for job in self._jobs.values())

    async def _claim(
        self, claim: Callable[..., Awaitable[list[Prediction]]], room: Capacity | ReserveCapacity
    ) -> list[Prediction]:
        """Take tasks."""
        limits, worker = self._limits, self._worker
        self._claims += 1
        try:
            return await claim(self._database, worker.models, worker.id, self._tools.versions, limits.lease_s, room)
        except DatabaseUnavailable:
            self._unavailable_at = asyncio.get_running_loop().time()
            raise
        finally:
            self._claims += 1

    async def _recover(self) -> None:
        """Put back tasks of lost workers now and then, unless none could say for a lease that it was not lost."""
        clock = asyncio.get_running_loop().time
        if clock() < self._recover_at or clock() - self._unavailable_at <= self._limits.lease_s:
            return
        try:
            await predictions.recover(self._database, self._limits.attempts_max)
        except DatabaseUnavailable:
            self._unavailable_at = clock()
            raise
        self._recover_at = clock() + IDLE_S / 2  # less than an idle worker waits

    def _add_job(self, task: Prediction, *, reserved: bool = False) -> Job:
        """Make a job of a claimed task."""
        job = Job.of(task, reserved=reserved)
        if self._database.changes.stopped:  # said while the task was being claimed
            job.aborted.set()
        self._jobs[task.id, task.attempt] = job
        return job

    async def _wait_for_change(self, seen: int) -> None:
        """Wait until something was committed since `seen`, a job has ended, or it is time to fill the reserve."""
        timeout_s = self._beside_at - asyncio.get_running_loop().time() if self._beside_due else IDLE_S
        waiting = [
            asyncio.create_task(self._database.changes.wait_after(seen, timeout_s)),
            asyncio.create_task(self._left.wait()),
        ]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def _stop_when(self, stopping: asyncio.Event) -> None:
        """Wait for the word to stop, then take no further task, let jobs end for a while, and give up the others."""
        await stopping.wait()
        self._database.changes.stop()
        logger.info("worker_stopping id=%s tasks=%d", self._worker.id, len(self._jobs))
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._limits.finish_s
        while self._jobs and clock() < deadline and not self._database.gone.is_set():  # noqa: ASYNC110 - they may end one by one, or all be given up
            await asyncio.sleep(min(0.05, deadline - clock()))
        for job in self._jobs.values():
            job.aborted.set()

    # --- what is its own -------------------------------------------------------------------------------------------

    async def _maintain(self) -> None:
        """Say again and again that this worker lives and how far it is, and give up what is no longer its own.

        One after the other: two transactions that touch several of its rows could wait for each other.
        """
        clock = asyncio.get_running_loop().time
        pulse_s = self._limits.lease_s / 3
        due = clock() + pulse_s
        while True:
            await asyncio.sleep(min(PROGRESS_S, pulse_s))
            try:
                if clock() >= due:
                    await self._renew()
                    due = clock() + pulse_s
                await self._report_progress()
            except DatabaseUnavailable as error:
                logger.warning("unavailable what=care error=%s", error.message)
                self._unavailable_at = clock()

    async def _renew(self) -> None:
        """Lengthen the leases; hand back what it holds and does not draw."""
        asked = set(self._jobs)
        await workers.heartbeat(self._database, self._worker.id)
        held = await predictions.renew(self._database, self._worker.id, self._limits.lease_s)
        self._apply_leases(asked, held)
        for each in self._orphaned(held):
            logger.warning("orphaned_lease_found id=%s attempt=%d", each.id, each.attempt)
            await predictions.requeue(self._database, each)

    def _orphaned(self, held: set[Lease]) -> list[Lease]:
        """Find tasks that are held without a job, because the answer to their claim was lost, or they were kept.

        Not before the second time, and when the claim that may have been on its way at the first one has ended.
        """
        strays, unknown = [], {}
        for each in held:
            claim = each.id, each.attempt
            if claim in self._jobs:
                continue
            begun = self._unknown.get(claim)
            if begun is not None and (begun % 2 == 0 or self._claims > begun):
                strays.append(each)
            else:
                unknown[claim] = self._claims if begun is None else begun
        self._unknown = unknown
        return strays

    async def _report_progress(self) -> None:
        """Write down how far drawings are that went on, and look for those that were cancelled."""
        steps = {}
        for claim, job in list(self._jobs.items()):
            if (news := job.progress.take_update()) is not None:
                steps[claim] = await _step(job.task, news)
        if steps:
            self._apply_leases(set(steps), await predictions.report(self._database, self._worker.id, steps))
        changed = self._database.changes.version()
        if self._jobs and changed != self._seen:
            ended = await history.finished(self._database, {id_ for id_, _ in self._jobs})
            self._seen = changed
            for (id_, _), job in self._jobs.items():
                if id_ in ended:
                    job.aborted.set()

    def _apply_leases(self, asked: set[Claim], held: set[Lease]) -> None:
        """Give up those that were asked about and are held no more; the others know whether they are watched."""
        watched = {(each.id, each.attempt): each.watched for each in held}
        for claim in asked & self._jobs.keys():
            job = self._jobs[claim]
            if claim in watched:
                job.progress.watched = watched[claim]
            else:
                job.aborted.set()

    # --- one task --------------------------------------------------------------------------------------------------

    async def _run_job(self, job: Job) -> None:
        task = job.task
        logger.info(
            "task_started id=%s attempt=%d model=%s size=%s images=%d",
            *(task.id, task.attempt, task.model, task.input.size, task.input.num_images),
        )
        try:
            try:
                say = await self._process(job)
                counted = await retry_unavailable(say, job.aborted, "say")
            except Interrupted:
                counted = await self._requeue(task)
            except Exception:  # the edge: whatever the store does not take, the worker goes on
                logger.exception("task_raised id=%s", task.id)
                counted = await self._requeue(task, quarantined=True)
            if not counted:
                await self._remove_files(task)
        finally:
            del self._jobs[task.id, task.attempt]
            self._left.set()

    async def _remove_files(self, task: Prediction) -> None:
        """Remove what was written of a task that was cancelled or deleted meanwhile; what is left, a sweep finds."""
        try:
            if await predictions.has_no_images(self._database, task.id):
                await self._tools.outputs.delete(task.output_names)
        except (DatabaseUnavailable, ObjectStoreUnavailable) as error:
            logger.warning("file_removal_failed id=%s error=%s", task.id, error.message)

    async def _process(self, job: Job) -> RecordOutcome:
        """Draw a task; what there is to say of it then. Raises Interrupted."""
        task = job.task
        try:
            drawn = await generate(self._bridge, self._tools, job)
        except Interrupted:
            raise
        except TaskFailed as error:  # all that the engine had has failed with it
            if task.workers_lost and not self._bridge.broken:  # it was alone, and so it is the reason
                return partial(self._fail, task, error.code, error.message)
            return partial(self._requeue, task, quarantined=True)
        except HiDreamError as error:
            return partial(self._fail, task, error.code, error.message)
        except Exception as error:  # the edge: whatever a task does, the worker goes on
            logger.exception("task_raised id=%s", task.id)
            if out_of_memory(error) and not task.workers_lost:  # others had it: next time it is drawn alone
                return partial(self._requeue, task, quarantined=True)
            return partial(self._fail, task, TaskFailed.code, reason(error, task.id))
        return partial(self._complete, task, drawn)

    async def _complete(self, task: Prediction, drawn: Generated) -> bool:
        said = drawn.nsfw, drawn.inference_ms, drawn.warnings, drawn.output_bytes
        done = await predictions.complete(self._database, task, *said)
        logger.info("task_completed id=%s counted=%s inference_ms=%d", task.id, done, drawn.inference_ms)
        return done

    async def _fail(self, task: Prediction, code: int, error: str) -> bool:
        text = error.replace("\0", "")[:ERROR_MAX_CHARS]  # PostgreSQL takes no zero byte
        done = await predictions.fail(self._database, task, code, text)
        logger.warning("task_failed id=%s code=%d counted=%s", task.id, code, done)
        return done

    async def _requeue(self, task: Prediction, *, quarantined: bool = False) -> bool:
        """Put a task back into the queue; one that cannot be, for long, is found again by `_renew`."""
        requeue = partial(predictions.requeue, self._database, task, quarantined=quarantined)
        try:
            done = await retry_unavailable(requeue, asyncio.Event(), "requeue", within_s=SHUTDOWN_RETRY_S)
        except DatabaseUnavailable as error:
            logger.warning("requeue_failed id=%s attempt=%d error=%s", task.id, task.attempt, error.message)
            return False
        logger.info("task_requeued id=%s attempt=%d requeued=%s", task.id, task.attempt, done)
        return done


async def _step(task: Prediction, news: ProgressUpdate) -> StepReport:
    """What the store is told of a drawing, its preview as the bytes of a file."""
    preview = news.preview
    if preview is None:
        return StepReport(news.done, news.steps)
    return StepReport(
        news.done, news.steps, await asyncio.to_thread(preview_jpeg, preview, task.input.seed, task.version)
    )
