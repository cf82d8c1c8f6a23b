"""Watching the progress of tasks: one watcher polls the database for all clients that watch.

A `TaskView` is a task's state and progress; a client that has one waits for the next. A change costs one query for all
tasks that this process watches, and one more each for tasks with a new state or a new preview.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hidream.store.database import Database
from hidream.store.prediction import COLUMNS, Prediction
from hidream.store.schema import PREDICTIONS as P
from hidream.store.schema import PREVIEWS
from hidream.types import Status, Step

WATCH_S, WATCH_RENEW_S = 25.0, 10.0
"""How long a request for previews is valid, and how often it is renewed: two renewals may be late."""
POLL_S = 1.0
"""How long the watcher waits for a change before it queries again."""
MIN_INTERVAL_S = 0.05
"""The pause between queries: workers report twice a second, and nobody sees more than 20 updates a second."""


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task and its progress. `prediction` is read at each transition; the steps are newer.

    `step` is the latest one. `previewed` is the latest one with a preview, the bytes of a JPEG file; None without any.
    """

    prediction: Prediction
    step: Step[bytes]
    previewed: Step[bytes] | None = None

    @classmethod
    def of(cls, prediction: Prediction) -> TaskView:
        """Return the first view of a task."""
        return cls(prediction, prediction.progress)


class ProgressWatcher:
    """The tasks that clients of this process watch."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watched: Counter[str] = Counter()
        self._views: dict[str, TaskView | None] = {}
        self._moved = asyncio.Event()  # replaced after each change, so that it wakes all waiters
        self._watcher: asyncio.Task[None] | None = None
        self._asked: dict[str, float] = {}  # when previews were last requested, on the loop's clock

    @property
    def stopped(self) -> bool:
        """Whether this process is shutting down."""
        return self._database.changes.stopped

    @asynccontextmanager
    async def watching(self, prediction_id: str) -> AsyncIterator[None]:
        """Watch a task as long as this context is open."""
        self._watched[prediction_id] += 1
        if self._watcher is None or self._watcher.done():
            self._watcher = self._database.run_in_background(self._watch())
        try:
            yield
        finally:
            self._watched[prediction_id] -= 1
            if not self._watched[prediction_id]:
                del self._watched[prediction_id]
                self._views.pop(prediction_id, None)
                self._asked.pop(prediction_id, None)

    async def next_view(
        self,
        prediction_id: str,
        seen: TaskView | None,
        timeout_s: float,
        disconnected: asyncio.Future[Any] | None = None,
    ) -> TaskView | None:
        """Wait for a view of a watched task that differs from `seen`; return None if the task no longer exists.

        Returns `seen` after `timeout_s`, on shutdown, and on `wake` once `disconnected` is done. Raises
        DatabaseUnavailable.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not (self.stopped or (disconnected is not None and disconnected.done())):
                    moved = self._moved
                    if prediction_id in self._views and self._views[prediction_id] is not seen:
                        return self._views[prediction_id]
                    if self._watcher is not None and self._watcher.done():
                        self._watcher.result()
                    await moved.wait()
        return seen

    async def _watch(self) -> None:
        changes = self._database.changes
        try:
            while self._watched and not changes.stopped:
                seen = changes.version()
                if await self._look():
                    self.wake()
                await self._ask()
                await asyncio.sleep(MIN_INTERVAL_S)
                await changes.wait_after(seen, POLL_S)
        finally:
            self.wake()

    def wake(self) -> None:
        """Wake all waiters."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def _ask(self) -> None:
        """Request previews of the tasks that are watched here."""
        now = asyncio.get_running_loop().time()
        drawn = [id_ for id_, view in self._views.items() if view and view.prediction.status is Status.PROCESSING]
        due = [id_ for id_ in drawn if now - self._asked.get(id_, -WATCH_RENEW_S) >= WATCH_RENEW_S]
        self._asked |= dict.fromkeys(due, now)
        await watch(self._database, due, WATCH_S)

    async def _look(self) -> bool:
        """Update the views of tasks that have changed; return whether any has."""
        ids = [i for i in self._watched if not ((view := self._views.get(i)) and view.prediction.status.final)]
        if not ids:
            return False
        found = await _progress_rows(self._database, ids)
        views = {id_: self._views.get(id_) for id_ in ids}
        moved = [id_ for id_, row in found.items() if (v := views[id_]) is None or row.moved(v)]
        fresh = {id_: row.step for id_, row in found.items() if row.has_new_preview(views[id_])}
        predictions = await _predictions(self._database, moved) if moved else {}
        previews = await _previews(self._database, fresh) if fresh else {}
        changed = False
        for id_, before in views.items():
            after = _renewed(before, found.get(id_), predictions.get(id_), previews.get(id_))
            if (after is not before or id_ not in self._views) and id_ in self._watched:
                self._views[id_] = after
                changed = True
        return changed


async def watch(database: Database, prediction_ids: Collection[str], for_s: float) -> None:
    """Request previews of these tasks from their workers, for a while.

    Rows of waiting tasks are not updated: a claim would skip them while they are locked.
    """
    if not prediction_ids:
        return
    until = database.now_ms() + round(for_s * 1000)
    statement = sa.update(P).where(P.c.id.in_(prediction_ids), P.c.status == Status.PROCESSING)
    async with database.write(quiet=True) as connection:
        await connection.execute(statement.values(watched_until_ms=until))


@dataclass(frozen=True, slots=True)
class _ProgressRow:
    """What changes while a task is processed; `preview_step` is 0 without a preview."""

    status: Status
    attempt: int
    step: Step[bytes]
    preview_step: int

    def moved(self, view: TaskView) -> bool:
        """Whether the task has made a transition since the view."""
        return (self.status, self.attempt) != (view.prediction.status, view.prediction.attempt)

    def has_new_preview(self, view: TaskView | None) -> bool:
        """Whether there is a preview other than the view's."""
        return bool(self.preview_step) and (
            view is None or view.previewed is None or self.preview_step != view.previewed.done
        )


async def _progress_rows(database: Database, ids: Collection[str]) -> dict[str, _ProgressRow]:
    wanted = (
        sa.select(P.c.id, P.c.status, P.c.attempt, P.c.step, P.c.steps, sa.func.coalesce(PREVIEWS.c.step, 0))
        .outerjoin(PREVIEWS, PREVIEWS.c.prediction_id == P.c.id)
        .where(P.c.id.in_(ids), P.c.status != Status.DELETED)
    )
    async with database.read() as connection:
        rows = await connection.execute(wanted)
        return {
            id_: _ProgressRow(Status(status), attempt, Step(done, of), preview_step)
            for id_, status, attempt, done, of, preview_step in rows
        }


async def _predictions(database: Database, ids: Collection[str]) -> dict[str, Prediction]:
    async with database.read() as connection:
        rows = await connection.execute(sa.select(*COLUMNS).where(P.c.id.in_(ids), P.c.status != Status.DELETED))
        return {prediction.id: prediction for prediction in map(Prediction.of_row, rows)}


async def _previews(database: Database, latest: Mapping[str, Step[bytes]]) -> dict[str, Step[bytes]]:
    """Read the steps with previews of tasks whose latest steps these are."""
    wanted = sa.select(PREVIEWS.c.prediction_id, PREVIEWS.c.step, PREVIEWS.c.image)
    async with database.read() as connection:
        rows = await connection.execute(wanted.where(PREVIEWS.c.prediction_id.in_(latest)))
        return {row.prediction_id: Step(row.step, latest[row.prediction_id].of, row.image) for row in rows}


def _renewed(
    before: TaskView | None, row: _ProgressRow | None, prediction: Prediction | None, previewed: Step[bytes] | None
) -> TaskView | None:
    """Combine what was read: the same view if nothing is new, None if the task no longer exists."""
    now = prediction or (before.prediction if before else None)
    if row is None or now is None:
        return None
    step = now.progress if now.status.final or prediction is not None else row.step
    same_attempt = before is not None and now.attempt == before.prediction.attempt
    after = TaskView(now, step, previewed or (before.previewed if before and same_attempt else None))
    return before if after == before else after
