"""The event streams of OpenAI's images API: previews of a task as partial images, then its images.

    image_generation.partial_image    {"type": ..., "partial_image_index": 0, "b64_json": ..., ...}, a preview as JPEG
    image_generation.completed        {"type": ..., "b64_json": ..., "usage": ..., ...}, one for each image
    error                             {"type": "error", "error": {...}}, and nothing after it

The events of edits begin with `image_edit`. Source: openai-python 3.54.0, `types/image_gen_stream_event.py`,
`types/image_edit_stream_event.py`; the form of errors is what `_streaming.py` raises.

A stream lasts as long as its task: a worker that dies interrupts nothing, since another one takes the task over. A
client cannot resume a stream, so a task whose client is gone is cancelled, unless it can be asked for again.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from hidream.errors import DatabaseUnavailable, HiDreamError, NotFound, ObjectStoreUnavailable
from hidream.server.client_watch import Revoked
from hidream.server.embedded_files import EmbeddedFile, JsonStream
from hidream.server.openai_answers import about, error_data, error_of, usage, warnings
from hidream.server.results import unknown
from hidream.server.routes.events import HEADERS, HEARTBEAT_S
from hidream.server.service import Service
from hidream.store import predictions
from hidream.store.prediction import Prediction
from hidream.store.progress import TaskView
from hidream.types import ImageFormat, Status

COMMENT = ":\n\n"
RETRY_S = 1.0
"""The pause before a task is read again while the database is unavailable."""


@dataclass(slots=True)
class PartialImages:
    """Which previews become partial images: at most `wanted`, spread evenly over the steps.

    `name` is how the types of all events begin.
    """

    name: str
    wanted: int
    sent: int = 0
    last: tuple[int, int] = (0, 0)
    """Attempt and step of the last preview that was sent."""

    def next_event(self, view: TaskView) -> JsonStream | None:
        """Return the event of a new preview, if one is due."""
        step = view.previewed
        if self.sent >= self.wanted or step is None or step.preview is None:
            return None
        this = (view.prediction.attempt, step.done)
        if this == self.last or step.done * (self.wanted + 1) < step.of * (self.sent + 1):
            return None
        event = {
            **_begun(f"{self.name}.partial_image", view.prediction),
            "output_format": ImageFormat.JPEG,
            "partial_image_index": self.sent,
            "b64_json": base64.b64encode(step.preview).decode("ascii"),
        }
        self.sent, self.last = self.sent + 1, this
        return _event(event)


class ImageStream(StreamingResponse):
    """The events of one task. `held` is closed at their end; if the client leaves before, the task is cancelled.

    Without `cancels`, the task goes on, because the client can ask for it again.
    """

    def __init__(
        self,
        service: Service,
        prediction: Prediction,
        partial_images: PartialImages,
        revoked: Revoked,
        held: ExitStack,
        headers: dict[str, str],
        *,
        cancels: bool,
    ) -> None:
        super().__init__(self._events(), headers=HEADERS | headers)
        self._service, self._held, self._cancels = service, held, cancels
        self._view: TaskView | None = TaskView.of(prediction)
        self._id, self._key_id = prediction.id, prediction.key_id
        self._partial_images, self._revoked = partial_images, revoked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; then cancel the task if nobody waits for it any more, and release what is held."""
        with self._held:
            try:
                await super().__call__(scope, receive, send)
            finally:
                await asyncio.shield(self._cancel())

    async def _cancel(self) -> None:
        """Cancel the task, unless it has ended, may be asked for again, or this process stops."""
        ended = self._view is None or self._view.prediction.status.final
        if self._cancels and not ended and not self._service.progress.stopped:
            with suppress(DatabaseUnavailable):
                await predictions.cancel(self._service.database, self._id, self._key_id)

    async def _events(self) -> AsyncIterator[str | bytes]:
        yield COMMENT  # proxies pass the headers on with the first bytes
        self._revoked.add_done_callback(lambda _: self._service.progress.wake())
        while self._goes_on():
            try:
                async with self._service.progress.watching(self._id):
                    while self._goes_on():
                        event = await self._next()
                        if event is None:
                            yield COMMENT
                            continue
                        async for piece in event:
                            yield piece
            except DatabaseUnavailable:  # the client could not come back, so the stream waits for the database
                yield COMMENT
                await asyncio.sleep(RETRY_S)
        try:
            for event in await self._last():
                async for piece in event:
                    yield piece
        except (NotFound, ObjectStoreUnavailable) as error:
            async for piece in _error(error.http_status, error.message):
                yield piece

    def _goes_on(self) -> bool:
        view = self._view
        return not (
            view is None or view.prediction.status.final or self._service.progress.stopped or self._revoked.done()
        )

    async def _next(self) -> JsonStream | None:
        """Wait for another view of the task, or for HEARTBEAT_S; return its event, if it has one.

        Raises DatabaseUnavailable.
        """
        self._view = await self._service.progress.next_view(self._id, self._view, HEARTBEAT_S, self._revoked)
        return None if self._view is None else self._partial_images.next_event(self._view)

    async def _last(self) -> list[JsonStream]:
        """Return the last events: the images, or an error. Raises NotFound, ObjectStoreUnavailable."""
        if self._view is None:
            raise unknown(self._id)
        prediction = self._view.prediction
        if prediction.status is Status.COMPLETED:
            files = [await EmbeddedFile.of(self._service.outputs, name) for name in prediction.output_names]
            return [_completed(f"{self._partial_images.name}.completed", prediction, file) for file in files]
        if prediction.status.final:
            return [_error(*error_of(prediction))]
        if self._revoked.done():
            error: HiDreamError = self._revoked.result()
            return [_error(error.http_status, error.message)]
        return [_error(503, stops(self._id))]


def stops(prediction_id: str) -> str:
    """Say that this process stops before a task has ended."""
    return f"this server stops; the images are generated all the same: GET /api/v3/predictions/{prediction_id}"


def _completed(name: str, prediction: Prediction, file: EmbeddedFile) -> JsonStream:
    event = {**_begun(name, prediction), "b64_json": file, "usage": usage(prediction.input, 1), **warnings(prediction)}
    return _event(event)


def _begun(name: str, prediction: Prediction) -> dict[str, Any]:
    return {"type": name, "created_at": int(time.time()), **about(prediction.input)}


def _error(status: int, message: str, code: str | None = None) -> JsonStream:
    return _event({"type": "error", "error": error_data(status, message, code)})


def _event(data: dict[str, Any]) -> JsonStream:
    return JsonStream(data, f"event: {data['type']}\ndata: ", "\n\n")
