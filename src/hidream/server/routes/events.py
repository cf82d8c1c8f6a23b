"""A task's event stream: server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    status    the prediction, as in the result: at once, and whenever its state changes
    progress  {"step": 5, "steps": 28}
    preview   {"step": 5, "image": "data:image/jpeg;base64,..."}

The stream ends after a final status. Each event's id encodes all that the client has received by then. So a client that
reconnects with it as `Last-Event-ID`, to any process, receives only new events.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from hidream.errors import DatabaseUnavailable, NotFound, ObjectStoreUnavailable
from hidream.server.client_watch import Revoked
from hidream.server.embedded_files import JsonStream
from hidream.server.responses import base_url
from hidream.server.results import described
from hidream.server.service import Route, Version, ViewKey, secret_of, service_of
from hidream.store import history
from hidream.store.prediction import Prediction
from hidream.store.progress import ProgressWatcher, TaskView
from hidream.types import Status

HEARTBEAT_S = 15.0
"""The longest silence before a comment is sent. Proxies close connections after a minute of silence, some earlier."""
RETRY_MS = 1000
"""The pause after which a client reconnects when the stream breaks."""

Describe = Callable[[Prediction], Awaitable[dict[str, Any]]]
"""Describes a prediction as in the result."""

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # nginx would collect events until a buffer is full
}


@dataclass(frozen=True, slots=True)
class EventCursor:
    """What a client has received of a task: the last state, the last step, and the step of the last preview."""

    attempt: int = -1
    status: Status | None = None
    step: int = 0
    preview: int = 0

    @classmethod
    def of(cls, last_event_id: str) -> EventCursor:
        """Parse an event's id; if it is not one of ours, the client has received nothing."""
        match = re.fullmatch(r"(\d{1,6})-([a-z]{1,16})-(\d{1,6})-(\d{1,6})", last_event_id, re.ASCII)
        if not match or match[2] not in list(Status):
            return cls()
        return cls(int(match[1]), Status(match[2]), int(match[3]), int(match[4]))

    def __str__(self) -> str:
        return f"{self.attempt}-{self.status}-{self.step}-{self.preview}"


async def events(request: Request, prediction_id: str, api: Version, key: ViewKey) -> Response:
    """GET /api/{v2,v3}/predictions/{id}/events: the task's events until its end."""
    service = service_of(request)
    async with service.read_limiter.slot(key.id, request):
        prediction = await history.get(service.database, prediction_id, key.id)
    if prediction is None:
        raise NotFound(f"there is no prediction {prediction_id!r:.100} of this API key")
    cursor = EventCursor.of(request.headers.get("last-event-id", ""))
    if (cursor.attempt, cursor.status) == (prediction.attempt, prediction.status) and prediction.status.final:
        return Response(status_code=204)  # tells a browser not to reconnect
    if request.method == "HEAD":
        return StreamingResponse(iter(()), headers=HEADERS)
    url = base_url(request, service.settings.server.public_url)

    async def describe(now: Prediction) -> dict[str, Any]:
        # shielded: a disconnect cancels this, and a cancelled database call costs a connection
        return await asyncio.shield(described(service, now, api, url))

    held = ExitStack()
    held.enter_context(service.stream_limiter.slot(key.id))
    revoked = held.enter_context(service.revocations.watch(secret_of(request)))
    return _Events(_stream(service.progress, prediction, cursor, describe, revoked), held)


class _Events(StreamingResponse):
    """A stream, and the resources that it holds until it ends."""

    def __init__(self, events: AsyncIterator[str | bytes], held: ExitStack) -> None:
        super().__init__(events, headers=HEADERS)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, then release the resources."""
        with self._held:
            await super().__call__(scope, receive, send)


async def _stream(
    progress: ProgressWatcher, prediction: Prediction, cursor: EventCursor, describe: Describe, revoked: Revoked
) -> AsyncIterator[str | bytes]:
    revoked.add_done_callback(lambda _: progress.wake())
    yield f"retry: {RETRY_MS}\n\n"
    view: TaskView | None = TaskView.of(prediction)
    async with progress.watching(prediction.id):
        while view is not None:
            try:
                cursor, events = await _new_events(cursor, view, describe)
                for event in events:
                    async for piece in event:
                        yield piece
            except (NotFound, ObjectStoreUnavailable):  # the client reconnects, and gets the error then
                return
            if view.prediction.status.final or progress.stopped or revoked.done():
                return
            if not events:
                yield ":\n\n"
            try:
                view = await progress.next_view(prediction.id, view, HEARTBEAT_S, revoked)
            except DatabaseUnavailable:
                return


async def _new_events(cursor: EventCursor, view: TaskView, describe: Describe) -> tuple[EventCursor, list[JsonStream]]:
    """Return the events that a client has not received, and the cursor after them."""
    now = view.prediction
    events: list[JsonStream] = []
    if (cursor.attempt, cursor.status) != (now.attempt, now.status):
        same = cursor.attempt == now.attempt
        cursor = EventCursor(now.attempt, now.status, cursor.step if same else 0, cursor.preview if same else 0)
        events.append(_event("status", cursor, await describe(now)))
    if now.status is not Status.PROCESSING:
        return cursor, events
    if view.step.done > cursor.step:
        cursor = replace(cursor, step=view.step.done)
        events.append(_event("progress", cursor, {"step": view.step.done, "steps": view.step.of}))
    previewed = view.previewed
    if previewed is not None and previewed.preview is not None and previewed.done > cursor.preview:
        cursor = replace(cursor, preview=previewed.done)
        image = "data:image/jpeg;base64," + base64.b64encode(previewed.preview).decode("ascii")
        events.append(_event("preview", cursor, {"step": previewed.done, "image": image}))
    return cursor, events


def _event(name: str, cursor: EventCursor, data: dict[str, Any]) -> JsonStream:
    return JsonStream(data, f"event: {name}\nid: {cursor}\ndata: ", "\n\n")


ROUTES: Sequence[Route] = (("GET", "/api/{api}/predictions/{prediction_id}/events", events),)
