"""Watches the clients of long requests: a wait ends when its client disconnects or its key is revoked.

Long requests are long polls, sync mode and event streams. All watched keys are looked up together, CHECK_S after a
commit and never more often. So a thousand streams cost one small query, and none while nothing is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.requests import ClientDisconnect, Request

from hidream.errors import DatabaseUnavailable, Unauthorized
from hidream.store import keys
from hidream.store.database import Database

CHECK_S = 0.25
Revoked = asyncio.Future[Unauthorized]
"""A future that is done when a watched key is no longer valid; its result is the error for the client."""


class RevocationWatcher:
    """Watches the keys of this process's long requests. It holds digests of the secrets, as the database does."""

    def __init__(self, database: Database, pepper: str) -> None:
        self._database = database
        self._pepper = pepper
        self._watched: dict[str, set[Revoked]] = {}
        self._unchecked = False  # whether a key was added since the last check: it may have been revoked just before
        self._watcher: asyncio.Task[None] | None = None

    @contextmanager
    def watch(self, secret: str) -> Iterator[Revoked]:
        """Yield a future that is done when the key of this secret is revoked or rotated."""
        digest, revoked = keys.digest_of(secret, self._pepper), asyncio.get_running_loop().create_future()
        self._unchecked |= digest not in self._watched
        self._watched.setdefault(digest, set()).add(revoked)
        if self._watcher is None or self._watcher.done():
            self._watcher = self._database.run_in_background(self._watch())
        try:
            yield revoked
        finally:
            if (of_key := self._watched.get(digest)) is not None:
                of_key.discard(revoked)
                if not of_key:
                    del self._watched[digest]

    async def _watch(self) -> None:
        changes = self._database.changes
        while self._watched and not changes.stopped:
            seen, self._unchecked = changes.version(), False
            await self._check()
            await asyncio.sleep(CHECK_S)
            while self._watched and not (changes.stopped or self._unchecked or changes.version() != seen):  # noqa: ASYNC110 - it sets no event
                await asyncio.sleep(CHECK_S)

    async def _check(self) -> None:
        digests = list(self._watched)
        try:
            valid = await keys.valid_digests(self._database, digests)
        except DatabaseUnavailable:  # the next check asks again
            return
        for digest in digests:
            if digest not in valid:
                for revoked in self._watched.pop(digest, ()):
                    revoked.set_result(Unauthorized("the API key was revoked or rotated"))


ClientGone = asyncio.Future[ClientDisconnect | Unauthorized]
"""A future that is done when no response can be sent any more; its result is the reason."""


@asynccontextmanager
async def watch_client(request: Request, revoked: Revoked) -> AsyncIterator[ClientGone]:
    """Yield a future that is done when the client disconnects or its key is `revoked`.

    The request's body must have been read before.
    """
    gone: ClientGone = asyncio.get_running_loop().create_future()

    def on_revoked(_: Revoked) -> None:
        if not gone.done():
            gone.set_result(revoked.result())

    async def listen() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if not gone.done():
            gone.set_result(ClientDisconnect())

    revoked.add_done_callback(on_revoked)
    listening = asyncio.create_task(listen())
    try:
        yield gone
    finally:
        listening.cancel()
        revoked.remove_done_callback(on_revoked)
