"""The worker's life: claim tasks, draw them together, check each, encode it, put the file in its place, say so.

Beside that a pulse keeps the worker's row and its leases fresh. A task whose lease was lost nevertheless, and those
that are being drawn when the worker is told to stop, are given up; the latter go back to the queue.

A task that has lost a worker may be what killed it, or may only have been beside: nobody knows. So it is drawn alone,
after the others have come to their end, and what happens then is its own doing. Therefore a task that kills every
worker costs the tasks beside it one worker, and no more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hidream.errors import HiDreamError, Interrupted, TaskFailed
from hidream.outputs import files
from hidream.outputs.encode import encode
from hidream.settings import Worker as WorkerSettings
from hidream.store import predictions, workers
from hidream.store.database import Database
from hidream.store.predictions import Prediction
from hidream.store.submission import Submission
from hidream.store.workers import Worker
from hidream.types import ImageRequest, Mode
from hidream.worker.bridge import Bridge

if TYPE_CHECKING:
    import numpy as np

IDLE_S = 1.0
"""How often a worker with room looks for tasks that other workers have lost."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tools:
    """What a picture goes through beside the bridge: the image classifier, and the folder it ends in.

    `versions` is what the model is called in each mode.
    """

    flagged: Callable[[np.ndarray], bool]
    outputs_dir: Path
    versions: Mapping[Mode, str]


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """A task that is being drawn; `given_up` is set to end that."""

    task: Prediction
    given_up: asyncio.Event


class Loop:
    """One worker at work, on a bridge that drives an engine."""

    def __init__(
        self, database: Database, bridge: Bridge, worker: Worker, tools: Tools, limits: WorkerSettings
    ) -> None:
        self._database = database
        self._bridge = bridge
        self._worker = worker
        self._tools = tools
        self._limits = limits
        self._places: dict[tuple[str, int], _Place] = {}  # by claim: id and attempt
        self._left = asyncio.Event()  # a place has become free

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set, or the bridge is broken."""
        await workers.register(self._database, self._worker)
        logger.info("worker_ready id=%s version=%s", self._worker.id, self._worker.version)
        async with asyncio.TaskGroup() as beside:
            running = [beside.create_task(self._pulse()), beside.create_task(self._stop_when(stopping))]
            async with asyncio.TaskGroup() as drawing:
                await self._work(drawing)
            for task in running:
                task.cancel()
        await workers.leave(self._database, self._worker.id)
        logger.info("worker_stopped id=%s", self._worker.id)

    async def _work(self, drawing: asyncio.TaskGroup) -> None:
        """Take tasks as long as there is room, and wait for news when there is not, or nothing to take."""
        changes = self._database.changes
        while not (changes.stopped or self._bridge.broken):
            self._left.clear()
            if self._full:
                await self._left.wait()
                continue
            seen = changes.now()
            await predictions.recover(self._database, self._limits.attempts_max)
            task = await self._claim()
            if task:
                drawing.create_task(self._do(task, self._give_place(task)))
            else:
                await self._news(seen)

    @property
    def _full(self) -> bool:
        """Whether nothing may be taken beside what is here."""
        alone = any(place.task.workers_lost for place in self._places.values())
        return alone or len(self._places) >= self._limits.tasks_max

    async def _claim(self) -> Prediction | None:
        return await predictions.claim(
            self._database,
            self._worker.models,
            self._worker.id,
            self._tools.versions,
            self._limits.lease_s,
            beside_others=bool(self._places),
        )

    def _give_place(self, task: Prediction) -> asyncio.Event:
        """Give a claimed task its place, and return what will be set when it has to leave it."""
        given_up = asyncio.Event()
        if self._database.changes.stopped:  # said while the task was being claimed
            given_up.set()
        self._places[task.id, task.attempt] = _Place(task, given_up)
        return given_up

    async def _news(self, seen: int) -> None:
        """Wait until something was committed since `seen`, or a place has become free."""
        waiting = [
            asyncio.create_task(self._database.changes.since(seen, IDLE_S)),
            asyncio.create_task(self._left.wait()),
        ]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def _pulse(self) -> None:
        """Say again and again that this worker lives, and give up what is no longer its own."""
        while True:
            await asyncio.sleep(self._limits.lease_s / 3)
            places = dict(self._places)
            await workers.beat(self._database, self._worker.id)
            held = await predictions.renew(self._database, self._worker.id, self._limits.lease_s)
            for claim in places.keys() - held:
                places[claim].given_up.set()

    async def _stop_when(self, stopping: asyncio.Event) -> None:
        """Wait for the word to stop, then take no further task and give up those that are being drawn."""
        await stopping.wait()
        self._database.changes.stop()
        for place in self._places.values():
            place.given_up.set()

    async def _do(self, task: Prediction, given_up: asyncio.Event) -> None:
        logger.info("task_started id=%s attempt=%d size=%s", task.id, task.attempt, task.input.size)
        try:
            await self._draw(task, given_up)
        except Interrupted:
            await self._hand_back(task)
        except TaskFailed as error:  # all that the engine had has failed with it
            if task.workers_lost and not self._bridge.broken:  # it was alone, and so it is the reason
                await self._fail(task, error.code, error.message)
            else:
                await self._hand_back(task, suspected=True)
        except HiDreamError as error:
            await self._fail(task, error.code, error.message)
        except Exception as error:  # the edge: whatever a task does, the worker goes on
            logger.exception("task_raised id=%s", task.id)
            await self._fail(task, TaskFailed.code, f"{type(error).__name__}: {error}")
        finally:
            del self._places[task.id, task.attempt]
            self._left.set()

    async def _draw(self, task: Prediction, given_up: asyncio.Event) -> None:
        asked = task.input
        drawn_as = f"{task.id}/{task.attempt}"  # of a lost lease, the next attempt may begin before this one has ended
        picture = await self._bridge.draw(drawn_as, request_of(asked), given_up)
        nsfw = asked.enable_safety_checker and await asyncio.to_thread(self._tools.flagged, picture.pixels)
        data = await asyncio.to_thread(
            encode, picture.pixels, asked.output_format, seed=asked.seed, version=task.version
        )
        await files.write(self._tools.outputs_dir, task.output_name, data)
        inference_ms = round(picture.timings.inference_s * 1000)
        completed = await predictions.complete(self._database, task, nsfw, inference_ms, picture.warnings)
        logger.info("task_completed id=%s counted=%s inference_ms=%d", task.id, completed, inference_ms)

    async def _hand_back(self, task: Prediction, *, suspected: bool = False) -> None:
        done = await predictions.hand_back(self._database, task, suspected=suspected)
        logger.info("task_given_up id=%s attempt=%d handed_back=%s", task.id, task.attempt, done)

    async def _fail(self, task: Prediction, code: int, error: str) -> None:
        await predictions.fail(self._database, task, code, error)
        logger.warning("task_failed id=%s code=%d", task.id, code)


def request_of(asked: Submission) -> ImageRequest:
    """Say to the model what was submitted."""
    return ImageRequest(
        prompt=asked.prompt,
        size=asked.size,
        seed=asked.seed,
        negative_prompt=asked.negative_prompt,
        steps=asked.num_inference_steps,
        guidance=asked.guidance_scale,
        shift=asked.shift,
        sampler=asked.sampler,
        conformance=asked.conformance,
        render=asked.render,
        mode=asked.mode,
        loras=asked.loras,
    )
