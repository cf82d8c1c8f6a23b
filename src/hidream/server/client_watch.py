"""Whether an answer may still be waited for: its client is there, and the key that asked for it is valid.

Whoever waits long, in a long poll, in sync mode or in an event stream, is watched by this file. Keys are looked up all
together, LOOK_S after something was committed and never more often: a thousand streams cost one small query, and none
while nothing happens in the database.
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
"""Done when a key that is watched is valid no more, with what its client is told."""


class RevocationWatcher:
    """The keys that wait for something in this process. Of a secret it holds the digest that the database has."""

    def __init__(self, database: Database, pepper: str) -> None:
        self._database = database
        self._pepper = pepper
        self._watched: dict[str, set[Revoked]] = {}
        self._unchecked = False  # whether a key has come since the last look: it may have been revoked just before
        self._watcher: asyncio.Task[None] | None = None

    @contextmanager
    def watch(self, secret: str) -> Iterator[Revoked]:
        """Give what is done once this secret opens nothing any more: its key was revoked or rotated."""
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
            while self._watched and not (changes.stopped or self._unchecked or changes.version() != seen):  # noqa: ASYNC110 - others'
                await asyncio.sleep(CHECK_S)

    async def _check(self) -> None:
        digests = list(self._watched)
        try:
            valid = await keys.valid_digests(self._database, digests)
        except DatabaseUnavailable:  # nobody knows: it is asked again
            return
        for digest in digests:
            if digest not in valid:
                for revoked in self._watched.pop(digest, ()):
                    revoked.set_result(Unauthorized("the API key was revoked or rotated"))


ClientGone = asyncio.Future[ClientDisconnect | Unauthorized]
"""Done when nobody may have an answer any more, with the reason."""


@asynccontextmanager
async def watch_client(request: Request, revoked: Revoked) -> AsyncIterator[ClientGone]:
    """Give what is done once the client disconnects, or its key is `revoked`; the request's body was read before."""
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
