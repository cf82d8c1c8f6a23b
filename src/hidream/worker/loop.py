"""The worker's main loop: it claims tasks, has them generated together, and records the outcome of each.

How much it claims depends on its capacity (`capacity`). Meanwhile it renews its row and its leases, reports progress,
and aborts jobs whose tasks were cancelled or whose leases were lost. When it is told to stop, running jobs may finish
for a while; then their tasks are requeued.

A task that has lost a worker may have killed it, or may only have run beside the one that did. So it is *quarantined*:
the worker generates it alone, after its other tasks have finished, and is then certain of the cause. So a task that
kills every worker costs the tasks beside it one worker, and no more.

When the database is unavailable, jobs continue, and their outcomes are recorded when it is back. If leases have expired
meanwhile, each worker gives the others time to renew theirs; after that, the attempt number decides which outcome is
recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from hidream.errors import DatabaseUnavailable, HiDreamError, Interrupted, ObjectStoreUnavailable, TaskFailed
from hidream.settings.tables import Worker as WorkerSettings
from hidream.store import claims, history, predictions, workers
from hidream.store.claims import Capacity, ReserveCapacity
from hidream.store.database import Database
from hidream.store.prediction import Prediction
from hidream.store.predictions import Lease
from hidream.store.workers import Worker
from hidream.types import Step
from hidream.worker.bridge import Bridge
from hidream.worker.capacity import free_capacity, free_reserve
from hidream.worker.failure import out_of_memory, reason
from hidream.worker.generation import Generated, Job, Tools, generate
from hidream.worker.progress import preview_jpeg
from hidream.worker.retry import retry_unavailable

if TYPE_CHECKING:
    import numpy as np

IDLE_S = 1.0
"""How often a worker with free capacity looks for the tasks of lost workers."""
RESERVE_CHECK_S = 0.05
"""How often at most it queries tasks for its reserve: there may be hundreds of commits a second."""
PROGRESS_S = 0.5
"""How often it reports progress and looks for cancelled tasks."""
SHUTDOWN_RETRY_S = 5.0
"""How long it retries to requeue a task, or to deregister, while the database is unavailable; stopping takes at most
twice as long. A task that was not requeued is recovered when its lease has expired."""
ERROR_MAX_CHARS = 1000
"""The length limit of an unexpected error's text: some contain a whole tensor."""
Claim = tuple[str, int]
"""A task's id and attempt number."""
RecordOutcome = Callable[[], Awaitable[bool]]
"""Records the outcome of a task; returns False if another claim holds the task now."""

logger = logging.getLogger(__name__)


class WorkerLoop:
    """One worker; its bridge has an engine for each of its models."""

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
        self._claims_begun = 0
        self._claim_running: int | None = None  # the number of the claim that waits for the database, if one does
        self._unknown: dict[Claim, int | None] = {}  # leases without a job: which claim was running when each was found
        self._unavailable_at = -math.inf  # when the database was last found to be unavailable
        self._recover_at = -math.inf  # when to look next for the tasks of lost workers
        self._reserve_at = -math.inf  # when the reserve may be filled next
        self._reserve_due = False  # whether the reserve would have been filled, but for `_reserve_at`
        self._seen = -1  # the database's version at the last look for cancelled tasks

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set, or the bridge is broken."""
        try:
            await retry_unavailable(self._register, stopping, "register")
        except Interrupted:
            return
        logger.info("worker_ready id=%s models=%s", self._worker.id, ",".join(self._worker.models))
        async with asyncio.TaskGroup() as background:
            running = [background.create_task(self._maintain()), background.create_task(self._stop_when(stopping))]
            async with asyncio.TaskGroup() as jobs:
                with contextlib.suppress(Interrupted):
                    await self._work(jobs, stopping)
            for task in running:
                task.cancel()
        await self._leave()
        logger.info("worker_stopped id=%s", self._worker.id)

    async def _register(self) -> None:
        # a dead worker may have had this id, such as process 1 of a restarted container: it holds nothing any more
        await predictions.recover(self._database, self._limits.attempts_max, self._worker.id)
        await workers.register(self._database, self._worker)

    async def _leave(self) -> None:
        try:
            leave = partial(workers.deregister, self._database, self._worker.id)
            await retry_unavailable(leave, asyncio.Event(), "leave", within_s=SHUTDOWN_RETRY_S)
        except DatabaseUnavailable as error:
            logger.warning("worker_deregister_failed id=%s error=%s", self._worker.id, error.message)

    # --- claiming --------------------------------------------------------------------------------------------------

    async def _work(self, running: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        """Claim tasks while there is capacity; else, or when there are no tasks, wait for a change."""
        changes = self._database.changes
        while not (changes.stopped or self._bridge.broken):
            self._left.clear()
            seen = changes.version()
            jobs = await self._claim_in_order(stopping) or await self._claim_for_reserve(stopping)
            for job in jobs:
                running.create_task(self._run_job(job))
            await retry_unavailable(self._recover, stopping, "recover")
            if not jobs:
                await self._wait_for_change(seen)

    async def _claim_in_order(self, stopping: asyncio.Event) -> list[Job]:
        """Claim what fits into the free capacity, in the order of the queue."""
        capacity = free_capacity(self._jobs.values(), self._limits)
        if capacity is None:
            return []
        tasks = await retry_unavailable(partial(self._claim, claims.claim, capacity), stopping, "claim")
        return [self._add_job(task) for task in tasks]

    async def _claim_for_reserve(self, stopping: asyncio.Event) -> list[Job]:
        """Claim what fits into the reserve, whether or not it is first in the queue."""
        reserve, clock = free_reserve(self._jobs.values(), self._limits), asyncio.get_running_loop().time
        self._reserve_due = reserve is not None and clock() < self._reserve_at
        if reserve is None or self._reserve_due:
            return []
        tasks = await retry_unavailable(partial(self._claim, claims.claim_reserve, reserve), stopping, "claim")
        self._reserve_at = -math.inf if tasks else clock() + RESERVE_CHECK_S
        return [self._add_job(task, reserved=True) for task in tasks]

    async def _claim(
        self, claim: Callable[..., Awaitable[list[Prediction]]], capacity: Capacity | ReserveCapacity
    ) -> list[Prediction]:
        """Claim tasks, and record meanwhile that a claim is running: the leases it makes have no jobs yet."""
        limits, worker = self._limits, self._worker
        self._claims_begun += 1
        self._claim_running = self._claims_begun
        try:
            return await claim(self._database, worker.models, worker.id, self._tools.versions, limits.lease_s, capacity)
        except DatabaseUnavailable:
            self._unavailable_at = asyncio.get_running_loop().time()
            raise
        finally:
            self._claim_running = None

    async def _recover(self) -> None:
        """Requeue the tasks of lost workers now and then; after an outage, only when others have had time to renew."""
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
        if self._database.changes.stopped:  # told to stop while the task was being claimed
            job.aborted.set()
        self._jobs[task.id, task.attempt] = job
        return job

    async def _wait_for_change(self, seen: int) -> None:
        """Wait until a commit after version `seen`, the end of a job, or the time to fill the reserve."""
        timeout_s = self._reserve_at - asyncio.get_running_loop().time() if self._reserve_due else IDLE_S
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
        """Wait for `stopping`; then claim no more tasks, let jobs finish for a while, and abort the rest."""
        await stopping.wait()
        self._database.changes.stop()
        logger.info("worker_stopping id=%s tasks=%d", self._worker.id, len(self._jobs))
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._limits.finish_s
        while self._jobs and clock() < deadline and not self._database.gone.is_set():  # noqa: ASYNC110 - jobs may end one by one, or all be aborted
            await asyncio.sleep(min(0.05, deadline - clock()))
        for job in self._jobs.values():
            job.aborted.set()

    # --- leases and progress ---------------------------------------------------------------------------------------

    async def _maintain(self) -> None:
        """Send heartbeats, renew leases, report progress, and abort jobs that have lost their leases.

        Sequentially: two transactions that update several of its rows could deadlock.
        """
        clock = asyncio.get_running_loop().time
        heartbeat_s = self._limits.lease_s / 3
        due = clock() + heartbeat_s
        while True:
            await asyncio.sleep(min(PROGRESS_S, heartbeat_s))
            try:
                if clock() >= due:
                    await self._renew()
                    due = clock() + heartbeat_s
                await self._report_progress()
            except DatabaseUnavailable as error:
                logger.warning("unavailable what=maintain error=%s", error.message)
                self._unavailable_at = clock()

    async def _renew(self) -> None:
        """Renew the leases; requeue tasks that are leased without a job."""
        asked = set(self._jobs)
        await workers.heartbeat(self._database, self._worker.id)
        held = await predictions.renew(self._database, self._worker.id, self._limits.lease_s)
        self._apply_leases(asked, held)
        for each in self._orphaned(held):
            logger.warning("orphaned_lease_found id=%s attempt=%d", each.id, each.attempt)
            await predictions.requeue(self._database, each)

    def _orphaned(self, held: set[Lease]) -> list[Lease]:
        """Find leases without a job: the reply to their claim was lost, or the task could not be requeued.

        A claim that is running has made leases whose jobs are yet to come. So a lease counts as orphaned when it is
        found again, and the claim that was running when it was first found, if any, has ended.
        """
        orphaned, unknown = [], {}
        for lease in held:
            claim = lease.id, lease.attempt
            if claim in self._jobs:
                continue
            first_found = claim not in self._unknown
            running_then = self._claim_running if first_found else self._unknown[claim]
            if not first_found and (running_then is None or running_then != self._claim_running):
                orphaned.append(lease)
            else:
                unknown[claim] = running_then
        self._unknown = unknown
        return orphaned

    async def _report_progress(self) -> None:
        """Report the jobs that have made progress, and abort those whose tasks were cancelled."""
        steps = {}
        for claim, job in list(self._jobs.items()):
            if (step := job.progress.take_step()) is not None:
                steps[claim] = await _with_jpeg(job.task, step)
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
        """Abort the jobs of these claims that are no longer leased; tell the others whether a client watches them."""
        watched = {(each.id, each.attempt): each.watched for each in held}
        for claim in asked & self._jobs.keys():
            job = self._jobs[claim]
            if claim in watched:
                job.progress.watched = watched[claim]
            else:
                job.aborted.set()

    # --- one job ---------------------------------------------------------------------------------------------------

    async def _run_job(self, job: Job) -> None:
        task = job.task
        logger.info(
            "task_started id=%s attempt=%d model=%s size=%s images=%d",
            *(task.id, task.attempt, task.model, task.input.size, task.input.num_images),
        )
        try:
            try:
                record = await self._process(job)
                recorded = await retry_unavailable(record, job.aborted, "record_outcome")
            except Interrupted:
                recorded = await self._requeue(task)
            except Exception:  # the edge of a job: the worker continues when the store refuses an outcome
                logger.exception("task_raised id=%s", task.id)
                recorded = await self._requeue(task, quarantined=True)
            if not recorded:
                await self._remove_files(task)
        finally:
            del self._jobs[task.id, task.attempt]
            self._left.set()

    async def _remove_files(self, task: Prediction) -> None:
        """Delete the files of a task that was cancelled or deleted meanwhile; a sweep finds what is left."""
        try:
            if await predictions.has_no_images(self._database, task.id):
                await self._tools.outputs.delete(task.output_names)
        except (DatabaseUnavailable, ObjectStoreUnavailable) as error:
            logger.warning("file_removal_failed id=%s error=%s", task.id, error.message)

    async def _process(self, job: Job) -> RecordOutcome:
        """Generate a task's images; return what records the outcome. Raises Interrupted."""
        task = job.task
        try:
            generated = await generate(self._bridge, self._tools, job)
        except Interrupted:
            raise
        except TaskFailed as error:  # all requests of the engine have failed
            if task.workers_lost and not self._bridge.broken:  # it ran alone, so it is the cause
                return partial(self._fail, task, error.code, error.message)
            return partial(self._requeue, task, quarantined=True)
        except HiDreamError as error:
            return partial(self._fail, task, error.code, error.message)
        except Exception as error:  # the edge of a task: the worker continues whatever it raises
            logger.exception("task_raised id=%s", task.id)
            if (
                out_of_memory(error) and not task.workers_lost
            ):  # other tasks used the memory: it is to run alone next time
                return partial(self._requeue, task, quarantined=True)
            return partial(self._fail, task, TaskFailed.code, reason(error, task.id))
        return partial(self._complete, task, generated)

    async def _complete(self, task: Prediction, generated: Generated) -> bool:
        result = generated.nsfw, generated.inference_ms, generated.warnings, generated.output_bytes
        done = await predictions.complete(self._database, task, *result)
        logger.info("task_completed id=%s counted=%s inference_ms=%d", task.id, done, generated.inference_ms)
        return done

    async def _fail(self, task: Prediction, code: int, error: str) -> bool:
        text = error.replace("\0", "")[:ERROR_MAX_CHARS]  # PostgreSQL stores no zero bytes
        done = await predictions.fail(self._database, task, code, text)
        logger.warning("task_failed id=%s code=%d counted=%s", task.id, code, done)
        return done

    async def _requeue(self, task: Prediction, *, quarantined: bool = False) -> bool:
        """Requeue a task; if the database is unavailable for too long, `_renew` finds the lease later."""
        requeue = partial(predictions.requeue, self._database, task, quarantined=quarantined)
        try:
            done = await retry_unavailable(requeue, asyncio.Event(), "requeue", within_s=SHUTDOWN_RETRY_S)
        except DatabaseUnavailable as error:
            logger.warning("requeue_failed id=%s attempt=%d error=%s", task.id, task.attempt, error.message)
            return False
        logger.info("task_requeued id=%s attempt=%d requeued=%s", task.id, task.attempt, done)
        return done


async def _with_jpeg(task: Prediction, step: Step[np.ndarray]) -> Step[bytes]:
    """Return a job's step with its preview as a JPEG file, as the store has it."""
    if step.preview is None:
        return Step(step.done, step.of)
    jpeg = await asyncio.to_thread(preview_jpeg, step.preview, task.input.seed, task.version)
    return Step(step.done, step.of, jpeg)
