"""How much a worker may claim beside the jobs that it has: its free capacity, and its free reserve.

The settings `tasks_max` and `pictures_max` are the *capacity*; a job occupies the work that is left of its task. There
is also a *reserve*, half as large, for keys that have no task here, so that a huge task of one key does not delay a
small one of another. The engine generates the small one first. `store/claims` claims what fits into either.
"""

from __future__ import annotations

from collections.abc import Collection

from hidream.settings.tables import Worker as WorkerSettings
from hidream.store.claims import Capacity, ReserveCapacity
from hidream.types import USUAL_WORK
from hidream.worker.generation import Job

RESERVE_SHARE = 0.5
"""The size of the reserve as a share of the capacity; at least one task."""


def free_capacity(jobs: Collection[Job], limits: WorkerSettings) -> Capacity | None:
    """Return the free capacity; None if there is none."""
    counted = [job for job in jobs if not job.reserved]
    tasks = limits.tasks_max - len(counted)
    work = capacity_work(limits) - sum(job.work_left for job in counted)
    if tasks <= 0 or (counted and work <= 0) or _has_quarantined(jobs):
        return None
    return Capacity(tasks, work, has_tasks=bool(counted), reserved=len(counted) < len(jobs))


def free_reserve(jobs: Collection[Job], limits: WorkerSettings) -> ReserveCapacity | None:
    """Return the free reserve; None if there is none, or if no task occupies the capacity: the queue's head is first.

    So a quarantined task, which needs the worker for itself, waits only for the tasks that were here before it.
    """
    reserved = [job for job in jobs if job.reserved]
    tasks = max(1, int(RESERVE_SHARE * limits.tasks_max)) - len(reserved)
    work = int(RESERVE_SHARE * capacity_work(limits)) - sum(job.work_left for job in reserved)
    if tasks <= 0 or work <= 0 or len(reserved) == len(jobs) or _has_quarantined(jobs):
        return None
    return ReserveCapacity(tasks, work, frozenset(job.task.key_id for job in jobs))


def capacity_work(limits: WorkerSettings) -> int:
    """Return the capacity in pixel steps."""
    return round(limits.pictures_max * USUAL_WORK)


def _has_quarantined(jobs: Collection[Job]) -> bool:
    """Whether a quarantined task is among the jobs, beside which no other may run."""
    return any(job.task.workers_lost for job in jobs)
