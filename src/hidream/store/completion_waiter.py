"""Waiting for tasks to finish: one watcher polls the database for all waiting callers."""

from __future__ import annotations

import asyncio
from typing import Any

from hidream.errors import DatabaseUnavailable
from hidream.store import history
from hidream.store.database import Database
from hidream.store.prediction import Prediction
from hidream.types import Status

POLL_S = 1.0
"""How long the watcher waits for a change before it queries again."""


class CompletionWaiter:
    """The callers of one process that wait for tasks to finish."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[
            asyncio.Future[Prediction | None], str
        ] = {}  # the future resolves when the task with this id has finished
        self._watcher: asyncio.Task[None] | None = None

    @property
    def stopped(self) -> bool:
        """Whether this process is shutting down: then nobody waits any more."""
        return self._database.changes.stopped

    async def wait(
        self, prediction_id: str, key_id: str, timeout_s: float, disconnected: asyncio.Future[Any] | None = None
    ) -> Prediction | None:
        """Wait until a task has finished, for `timeout_s`, or until this process shuts down; then return the task.

        When `disconnected` resolves while this waits, its result is an error, which is raised.
        """
        finished: asyncio.Future[Prediction | None] = asyncio.get_running_loop().create_future()
        self._waiting[finished] = prediction_id  # before the query, so that no completion is missed
        try:
            prediction = await history.get(self._database, prediction_id, key_id)
            if prediction is None or prediction.status.final or timeout_s <= 0:
                return prediction
            if self._watcher is None or self._watcher.done():
                self._watcher = self._database.run_in_background(self._watch())
            futures = (finished,) if disconnected is None else (finished, disconnected)
            await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if finished.done() and (task := finished.result()):
                return None if task.status is Status.DELETED else task
            if disconnected is not None and disconnected.done():
                raise disconnected.result()
        finally:
            del self._waiting[finished]
        return await history.get(self._database, prediction_id, key_id)

    async def _finished(self) -> dict[str, Prediction]:
        try:
            return await history.finished(self._database, set(self._waiting.values()))
        except DatabaseUnavailable:  # keep waiting: the database may come back
            await asyncio.sleep(POLL_S)
            return {}

    async def _watch(self) -> None:
        changes = self._database.changes
        while self._waiting and not changes.stopped:
            seen = changes.version()
            finished = await self._finished()
            for future, prediction_id in self._waiting.items():
                if prediction_id in finished and not future.done():
                    future.set_result(finished[prediction_id])
            await changes.wait_after(seen, POLL_S)
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
