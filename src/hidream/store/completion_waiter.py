"""Waiting for tasks to end: one watcher asks the database for all who wait, however many they are."""

from __future__ import annotations

import asyncio
from typing import Any

from hidream.errors import DatabaseUnavailable
from hidream.store import history
from hidream.store.database import Database
from hidream.store.prediction import Prediction
from hidream.types import Status

POLL_S = 1.0
"""How long the watcher stays when nobody waits any more."""


class CompletionWaiter:
    """Who waits for which task, in one process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[asyncio.Future[Prediction | None], str] = {}  # done when the task of this id has ended
        self._watcher: asyncio.Task[None] | None = None

    @property
    def stopped(self) -> bool:
        """Whether this process is about to leave: nothing is waited for any more."""
        return self._database.changes.stopped

    async def wait(
        self, prediction_id: str, key_id: str, timeout_s: float, left: asyncio.Future[Any] | None = None
    ) -> Prediction | None:
        """Wait for a task's end, up to `timeout_s` or until this process is about to leave, and look it up.

        Raises the error that is the result of `left`, once there is one while it waits: nobody waits for it any more.
        """
        end: asyncio.Future[Prediction | None] = asyncio.get_running_loop().create_future()
        self._waiting[end] = prediction_id  # before looking, so that an end in between is not missed
        try:
            prediction = await history.get(self._database, prediction_id, key_id)
            if prediction is None or prediction.status.final or timeout_s <= 0:
                return prediction
            if self._watcher is None or self._watcher.done():
                self._watcher = self._database.run_in_background(self._watch())
            ends = (end,) if left is None else (end, left)
            await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if end.done() and (over := end.result()):
                return None if over.status is Status.DELETED else over
            if left is not None and left.done():
                raise left.result()
        finally:
            del self._waiting[end]
        return await history.get(self._database, prediction_id, key_id)

    async def _over(self) -> dict[str, Prediction]:
        try:
            return await history.finished(self._database, set(self._waiting.values()))
        except DatabaseUnavailable:  # who waits goes on waiting: it may come back
            await asyncio.sleep(POLL_S)
            return {}

    async def _watch(self) -> None:
        changes = self._database.changes
        while self._waiting and not changes.stopped:
            seen = changes.version()
            over = await self._over()
            for end, prediction_id in self._waiting.items():
                if prediction_id in over and not end.done():
                    end.set_result(over[prediction_id])
            await changes.wait_after(seen, POLL_S)
        for end in self._waiting:
            if not end.done():
                end.set_result(None)
