"""Watching tasks being drawn: one watcher asks the database for all who watch, however many they are.

What a task looks like is a `View`; whoever has seen one waits for the next. A change costs one query for all tasks that
are watched in this process, and one more for those that have moved or have a new preview.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hidream.store.database import Database
from hidream.store.prediction import COLUMNS, Prediction
from hidream.store.schema import PREDICTIONS as P
from hidream.store.schema import PREVIEWS
from hidream.types import Status

WATCH_S, WATCH_RENEW_S = 25.0, 10.0
"""For how long workers are asked for previews at a time, and how often: two such requests may be late."""
POLL_S = 1.0
"""How long the watcher waits for a change before it looks by itself."""
MIN_INTERVAL_S = 0.05
"""How long the watcher rests after a look: workers report twice a second, and nobody sees more than 20 a second."""


@dataclass(frozen=True, slots=True)
class TaskView:
    """How far a task is. `step` of `steps` and `preview_step` are newer than `prediction`, which is of its last move.

    `preview` is a JPEG's bytes, of the step `preview_step`; 0 and empty as long as there is none.
    """

    prediction: Prediction
    step: int
    steps: int
    preview_step: int = 0
    preview: bytes = b""


class ProgressWatcher:
    """Who watches which task, in one process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watched: Counter[str] = Counter()
        self._views: dict[str, TaskView | None] = {}
        self._moved = asyncio.Event()  # a new one after each change, so that all who wait are woken by it
        self._watcher: asyncio.Task[None] | None = None
        self._asked: dict[str, float] = {}  # when workers were asked for previews, on the loop's clock

    @property
    def stopped(self) -> bool:
        """Whether this process is about to leave."""
        return self._database.changes.stopped

    @asynccontextmanager
    async def watching(self, prediction_id: str) -> AsyncIterator[None]:
        """Have a task watched for as long as this is open."""
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
        self, prediction_id: str, seen: TaskView | None, timeout_s: float, left: asyncio.Future[Any] | None = None
    ) -> TaskView | None:
        """Wait for a view of a watched task that is not `seen`; `seen` again after `timeout_s` or on leaving.

        Once `left` is done, and everybody was woken by `wake`, it is `seen` too.

        None if there is no such task any more. Raises DatabaseUnavailable when the database is away.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not (self.stopped or (left is not None and left.done())):
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
        """Let everybody who waits look again."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def _ask(self) -> None:
        """Have workers write down previews of what is watched here."""
        now = asyncio.get_running_loop().time()
        drawn = [id_ for id_, view in self._views.items() if view and view.prediction.status is Status.PROCESSING]
        due = [id_ for id_ in drawn if now - self._asked.get(id_, -WATCH_RENEW_S) >= WATCH_RENEW_S]
        self._asked |= dict.fromkeys(due, now)
        await watch(self._database, due, WATCH_S)

    async def _look(self) -> bool:
        """Renew the views of what has changed; say whether anything has."""
        ids = [i for i in self._watched if not ((view := self._views.get(i)) and view.prediction.status.final)]
        if not ids:
            return False
        found = await _glances(self._database, ids)
        views = {id_: self._views.get(id_) for id_ in ids}
        moved = [id_ for id_, glance in found.items() if (v := views[id_]) is None or glance.moved(v)]
        fresh = [id_ for id_, glance in found.items() if glance.has_new_preview(views[id_])]
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
    """Ask whoever draws these tasks to write down small pictures of them, for a while.

    Tasks that wait are left alone: a claim passes over rows that somebody else is writing.
    """
    if not prediction_ids:
        return
    until = database.now_ms() + round(for_s * 1000)
    statement = sa.update(P).where(P.c.id.in_(prediction_ids), P.c.status == Status.PROCESSING)
    async with database.write(quiet=True) as connection:
        await connection.execute(statement.values(watched_until_ms=until))


@dataclass(frozen=True, slots=True)
class _Glance:
    """The few columns that change while a task is drawn."""

    status: Status
    attempt: int
    step: int
    steps: int
    preview_step: int

    def moved(self, view: TaskView) -> bool:
        """Whether the task's row says something that a view of it does not."""
        return (self.status, self.attempt) != (view.prediction.status, view.prediction.attempt)

    def has_new_preview(self, view: TaskView | None) -> bool:
        """Whether there is a preview, and not the one of a view."""
        return bool(self.preview_step) and (view is None or self.preview_step != view.preview_step)


async def _glances(database: Database, ids: Collection[str]) -> dict[str, _Glance]:
    wanted = (
        sa.select(P.c.id, P.c.status, P.c.attempt, P.c.step, P.c.steps, sa.func.coalesce(PREVIEWS.c.step, 0))
        .outerjoin(PREVIEWS, PREVIEWS.c.prediction_id == P.c.id)
        .where(P.c.id.in_(ids), P.c.status != Status.DELETED)
    )
    async with database.read() as connection:
        return {row[0]: _Glance(Status(row[1]), *row[2:]) for row in await connection.execute(wanted)}


async def _predictions(database: Database, ids: Collection[str]) -> dict[str, Prediction]:
    async with database.read() as connection:
        rows = await connection.execute(sa.select(*COLUMNS).where(P.c.id.in_(ids), P.c.status != Status.DELETED))
        return {prediction.id: prediction for prediction in map(Prediction.of_row, rows)}


async def _previews(database: Database, ids: Collection[str]) -> dict[str, tuple[int, bytes]]:
    wanted = sa.select(PREVIEWS.c.prediction_id, PREVIEWS.c.step, PREVIEWS.c.image)
    async with database.read() as connection:
        rows = await connection.execute(wanted.where(PREVIEWS.c.prediction_id.in_(ids)))
        return {row.prediction_id: (row.step, row.picture) for row in rows}


def _renewed(
    before: TaskView | None, glance: _Glance | None, prediction: Prediction | None, preview: tuple[int, bytes] | None
) -> TaskView | None:
    """Put together what was found; the view itself where nothing is new, None where the task is gone."""
    now = prediction or (before.prediction if before else None)
    if glance is None or now is None:
        return None
    if now.status.final or prediction is not None:
        step, steps = now.step, now.steps
    else:
        step, steps = glance.step, glance.steps
    kept = before if before and now.attempt == before.prediction.attempt else None
    preview_step, picture = preview or ((kept.preview_step, kept.preview) if kept else (0, b""))
    after = TaskView(now, step, steps, preview_step, picture)
    return before if after == before else after
