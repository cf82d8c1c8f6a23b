"""The worker's life: claim a task, draw it, check it, encode it, put the file in its place, say so.

Beside that a pulse keeps the worker's row and its leases fresh. A task whose lease was lost nevertheless, and
one that is being drawn when the worker is told to stop, is given up; the latter goes back to the queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
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
from hidream.types import ImageRequest
from hidream.worker.bridge import Bridge

if TYPE_CHECKING:
    import numpy as np

    from hidream.model.pipeline import OnStep, Picture

IDLE_S = 1.0
"""How often an idle worker looks for tasks that other workers have lost."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tools:
    """What a picture passes through: the model, the image classifier, and the folder it ends in."""

    generate: Callable[[ImageRequest, OnStep], Picture]
    flagged: Callable[[np.ndarray], bool]
    outputs_dir: Path


class Loop:
    """One worker at work."""

    def __init__(
        self, database: Database, bridge: Bridge, worker: Worker, tools: Tools, limits: WorkerSettings
    ) -> None:
        self._database = database
        self._bridge = bridge
        self._worker = worker
        self._tools = tools
        self._limits = limits
        self._drawing: dict[tuple[str, int], asyncio.Event] = {}  # claim → set to give it up

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set."""
        await workers.register(self._database, self._worker)
        logger.info("worker_ready id=%s version=%s", self._worker.id, self._worker.version)
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(self._pulse()), group.create_task(self._stop_when(stopping))]
            await self._work()
            for task in beside:
                task.cancel()
        await workers.leave(self._database, self._worker.id)
        logger.info("worker_stopped id=%s", self._worker.id)

    async def _work(self) -> None:
        """Do one task after the other."""
        changes = self._database.changes
        while not changes.stopped:
            seen = changes.now()
            await predictions.recover(self._database, self._limits.attempts_max)
            task = await predictions.claim(
                self._database,
                self._worker.models,
                self._worker.id,
                self._worker.version,
                self._limits.lease_s,
            )
            if task:
                await self._do(task)
            else:
                await changes.since(seen, IDLE_S)

    async def _pulse(self) -> None:
        """Say again and again that this worker lives, and give up what is no longer its own."""
        while True:
            await asyncio.sleep(self._limits.lease_s / 3)
            drawing = dict(self._drawing)
            await workers.beat(self._database, self._worker.id)
            held = await predictions.renew(self._database, self._worker.id, self._limits.lease_s)
            for claim in drawing.keys() - held:
                drawing[claim].set()

    async def _stop_when(self, stopping: asyncio.Event) -> None:
        """Wait for the word to stop, then take no further task and give up the one that is being drawn."""
        await stopping.wait()
        self._database.changes.stop()
        for given_up in self._drawing.values():
            given_up.set()

    async def _do(self, task: Prediction) -> None:
        logger.info("task_started id=%s attempt=%d size=%s", task.id, task.attempt, task.input.size)
        claim = (task.id, task.attempt)
        given_up = self._drawing[claim] = asyncio.Event()
        try:
            await self._draw(task, given_up)
        except Interrupted:
            handed_back = await predictions.hand_back(self._database, task)
            logger.info("task_given_up id=%s attempt=%d handed_back=%s", task.id, task.attempt, handed_back)
        except HiDreamError as error:
            await self._fail(task, error.code, error.message)
        except Exception as error:  # the edge: whatever a task does, the worker goes on
            logger.exception("task_raised id=%s", task.id)
            await self._fail(task, TaskFailed.code, f"{type(error).__name__}: {error}")
        finally:
            del self._drawing[claim]

    async def _draw(self, task: Prediction, given_up: asyncio.Event) -> None:
        asked, request = task.input, request_of(task.input)

        def on_step(_done: int, _total: int) -> None:
            if given_up.is_set():
                raise Interrupted("the picture was given up before it was finished")

        picture = await self._bridge.run(lambda: self._tools.generate(request, on_step), given_up)
        nsfw = asked.enable_safety_checker and await asyncio.to_thread(self._tools.flagged, picture.pixels)
        data = await asyncio.to_thread(
            encode, picture.pixels, asked.output_format, seed=asked.seed, version=task.version
        )
        await files.write(self._tools.outputs_dir, task.output_name, data)
        inference_ms = round(picture.timings.inference_s * 1000)
        completed = await predictions.complete(self._database, task, nsfw, inference_ms, picture.warnings)
        logger.info("task_completed id=%s counted=%s inference_ms=%d", task.id, completed, inference_ms)

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
        loras=asked.loras,
    )
