"""Metrics in Prometheus' text format: those of this process, and those of the whole installation from the database.

Each API process counts its own `hidream_http_*`, `hidream_webhook_attempts*` and `hidream_swept*`; sum them over the
processes. All others are read from the database at each scrape. Every API process reports the same for the time since
it was started; take one of them, or the maximum, not the sum.

No label contains what a client wrote: methods, routes, models, states, codes and size classes come from fixed lists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hidream import __version__
from hidream.store import task_metrics, workers
from hidream.store.database import Database
from hidream.store.task_metrics import FinishedFeed, FinishedTask, SizeClass, UnfinishedCount
from hidream.types import MODELS, Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
HTTP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""From a poll to a long poll; event streams last longer."""
TASK_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 3600)
"""From the model nano at 512² to an hour in the queue; each bucket is about twice the previous one."""
WEBHOOK_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""The last bucket is the maximum time of an attempt (`webhooks/delivery.TOTAL_S`)."""


class Metrics:
    """The metrics of one API process."""

    def __init__(self, database: Database, worker_seen_s: float) -> None:
        self._database = database
        self._worker_seen_s = worker_seen_s
        self._finished_feed: FinishedFeed | None = None
        self._scraping = asyncio.Lock()
        self._registry = registry = CollectorRegistry()
        task, sized = ("model", "status", "code"), ("model", "size")
        http = ("method", "route", "status")
        Gauge("hidream_info", "Release", ["version"], registry=registry).labels(__version__).set(1)
        self._requests = Counter("hidream_http_requests", "HTTP requests answered", http, registry=registry)
        self._request_s = Histogram(
            "hidream_http_request_seconds",
            "Time of HTTP requests",
            ("method", "route"),
            buckets=HTTP_S,
            registry=registry,
        )
        self._webhooks = Counter(
            "hidream_webhook_attempts", "Attempts to deliver a webhook", ("result",), registry=registry
        )
        self._webhook_s = Histogram(
            "hidream_webhook_seconds", "Time of webhook delivery attempts", buckets=WEBHOOK_S, registry=registry
        )
        self._swept = Counter("hidream_swept", "What retention has removed", ("what",), registry=registry)
        self._queue = Gauge("hidream_queue_tasks", "Unfinished tasks", ("model", "size", "status"), registry=registry)
        self._oldest = Gauge(
            "hidream_queue_oldest_seconds", "Age of the oldest waiting task", ("model",), registry=registry
        )
        self._pending_webhooks = Gauge("hidream_webhooks_owed", "Webhooks to be delivered", registry=registry)
        self._workers = Gauge("hidream_workers", "Workers with a loaded model", ("model",), registry=registry)
        self._tasks = Counter("hidream_tasks", "Finished tasks", task, registry=registry)
        self._steps = Counter("hidream_steps", "Denoising steps of completed tasks", ("model",), registry=registry)
        self._waited = Histogram(
            "hidream_task_waiting_seconds",
            "From submission to the last claim",
            sized,
            buckets=TASK_S,
            registry=registry,
        )
        self._inferred = Histogram(
            "hidream_task_inference_seconds", "Model time of completed tasks", sized, buckets=TASK_S, registry=registry
        )
        self._total = Histogram(
            "hidream_task_seconds", "From submission to the end", sized, buckets=TASK_S, registry=registry
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is the path as it is registered, not as it was requested."""
        known = method if method in METHODS else "other"
        self._requests.labels(known, route, status).inc()
        self._request_s.labels(known, route).observe(seconds)

    def webhook(self, result: str, seconds: float) -> None:
        """Count an attempt to deliver a webhook: `delivered`, `failed` (there will be a retry) or `given_up`."""
        self._webhooks.labels(result).inc()
        self._webhook_s.observe(seconds)

    def swept(self, what: str, count: int) -> None:
        """Count what the sweep has removed."""
        self._swept.labels(what).inc(count)

    async def begin(self) -> None:
        """Count the tasks that finish from now on."""
        self._finished_feed = self._finished_feed or FinishedFeed(self._database)

    async def text(self) -> bytes:
        """Return all metrics as text. Raises DatabaseUnavailable."""
        async with self._scraping:
            await self.begin()
            assert self._finished_feed is not None, "begun"
            for task in await self._finished_feed.read():
                self._count(task)
            await self._update_gauges()
        return generate_latest(self._registry)

    async def _update_gauges(self) -> None:
        unfinished = await task_metrics.unfinished(self._database)
        for model in MODELS:
            for size in SizeClass:
                for status in (Status.CREATED, Status.PROCESSING):
                    self._queue.labels(model, size, status).set(0)
        for each in unfinished:
            if each.model in MODELS:
                self._queue.labels(each.model, each.size, each.status).set(each.count)
        serving = workers.count_by_model(await workers.ready(self._database, self._worker_seen_s))
        for model in MODELS:
            self._workers.labels(model).set(serving[model])
            self._oldest.labels(model).set(self._age_s(model, unfinished))
        self._pending_webhooks.set(await task_metrics.pending_webhooks(self._database))

    def _age_s(self, model: str, unfinished: Sequence[UnfinishedCount]) -> float:
        """Return how long the oldest waiting task of a model has waited; 0 if none, or if another clock is ahead."""
        now = self._database.now_ms()
        waiting = [each for each in unfinished if each.model == model and each.status is Status.CREATED]
        return max([0, *(now - each.oldest_ms for each in waiting)]) / 1000

    def _count(self, task: FinishedTask) -> None:
        model = task.model if task.model in MODELS else "other"  # of another release
        self._tasks.labels(model, task.status, task.code).inc()
        self._total.labels(model, task.size).observe(task.total_ms / 1000)
        if task.waited_ms is not None:
            self._waited.labels(model, task.size).observe(task.waited_ms / 1000)
        if task.status is Status.COMPLETED:
            self._inferred.labels(model, task.size).observe(task.inference_ms / 1000)
            self._steps.labels(model).inc(task.steps)
