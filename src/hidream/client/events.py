"""The events of a task: the server's stream, and a replacement for it by polling where there is none.

The parser follows https://html.spec.whatwg.org/multipage/server-sent-events.html as far as the server uses it: an event
ends with an empty line, and one without its end is dropped. After a broken connection, `events` goes on with the id of
the last whole event, so that nothing comes twice and nothing is left out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import httpx

from hidream.client.calls import POLL_LONGEST_S, api_request, get, overdue
from hidream.client.connection import Connection, Deadline
from hidream.client.effects import Close, Emit, Open, Read, Request, Response, Sleep, Steps
from hidream.client.prediction import Prediction, opened
from hidream.client.responses import error_of
from hidream.client.retries import RETRY_AFTER_MAX_S, TRANSIENT
from hidream.errors import ConnectionFailed, HiDreamError, ServerError
from hidream.retry_after import retry_after_s

if TYPE_CHECKING:
    from PIL import Image

EVENT_MAX_BYTES = 16 * 2**20
"""The largest event that is read; a preview has some kilobytes."""
LAST_S = 15.0
"""The time before the end of a call in which a silent stream must not go on: as long as the server's heartbeat."""
NO_STREAM = (404, 405, 406, 501)
"""Statuses of servers that have no events; 404 may also mean that there is no such task."""


@dataclass(frozen=True, slots=True)
class Event:
    """What is known about a task after an event: its state, and how far it is.

    `step` of `steps` are done; both are 0 before the first step. `preview_file` is a JPEG, in the event that brings it.
    """

    prediction: Prediction
    step: int = 0
    steps: int = 0
    preview_file: bytes | None = field(default=None, repr=False)

    @property
    def status(self) -> str:
        """The state of the task."""
        return self.prediction.status

    @property
    def preview(self) -> Image.Image | None:
        """What the image looks like so far, if this event brings it."""
        return None if self.preview_file is None else opened(self.preview_file)


@dataclass(frozen=True, slots=True)
class Message:
    """One event on the wire."""

    name: str
    id: str
    data: str


class Parser:
    """Turns the bytes of a stream into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add bytes; give the messages that they complete. Raises ServerError for a message without end."""
        self._rest += data
        *blocks, self._rest = self._rest.replace(b"\r\n", b"\n").split(b"\n\n")
        if len(self._rest) > EVENT_MAX_BYTES:
            raise ServerError(f"an event of the server has more than {EVENT_MAX_BYTES} bytes")
        for block in blocks:
            if message := _message(block.decode(errors="replace")):
                yield message


@dataclass(slots=True)
class _Followed:
    """A task that is followed: the last event, and its id in the stream."""

    connection: Connection
    last: Event
    deadline: Deadline
    last_id: str = ""

    @property
    def task_id(self) -> str:
        return self.last.prediction.id

    def takes(self, event: Event) -> Iterator[Emit]:
        """Take a new event; the first state comes twice, because it is read before the stream begins."""
        if event != self.last:
            self.last = event
            yield Emit(event)


def events(connection: Connection, task_id: str, deadline: Deadline) -> Steps[None]:
    """Emit the events of a task until it has ended. Raises NotFound, TimedOut, and what `call` raises."""
    task = _Followed(connection, Event((yield from get(connection, task_id, deadline))), deadline)
    yield Emit(task.last)
    failures = 0
    while not task.last.prediction.ended:
        known_id, wanted_s, left_s = task.last_id, 0.0, deadline.left_s
        try:
            head = yield Open(_stream(task), deadline.at_s)
            if head.status in NO_STREAM or (head.status < 300 and not _is_stream(head)):
                yield from _poll(task)
                return
            if head.status == 200:
                if (yield from _read(task, last=left_s <= LAST_S)):
                    continue
                failure: HiDreamError = ConnectionFailed("the server's stream of events ended before the task")
            else:
                wanted_s = retry_after_s(head.headers.get("retry-after", ""), connection.now_s())
                failure = error_of(head, wanted_s)
        except httpx.RequestError as error:
            failure = ConnectionFailed(
                f"the connection to {connection.base_url} failed: {error or type(error).__name__}"
            )
        except ServerError as error:
            failure = error
        yield Close()
        if not task.last.prediction.ended:
            failures = 1 if task.last_id != known_id else failures + 1
            yield from _pause(task, failure, failures, wanted_s)


def _read(task: _Followed, *, last: bool) -> Steps[bool]:
    """Emit what the open stream says, until it ends; return whether to open it again at once, for the last time.

    httpx fixes the limit of a silence when a stream begins. So the `last` one begins when the end of the time is near.
    """
    parser = Parser()
    while data := (yield Read()):
        for message in parser.feed(data):
            yield from task.takes(_after(task.last, message))
            task.last_id = message.id or task.last_id
        if task.deadline.left_s <= 0:
            raise overdue(task.last.prediction)
        if not last and task.deadline.left_s <= LAST_S and not task.last.prediction.ended:
            return True
    return False


def _poll(task: _Followed) -> Steps[None]:
    """Emit each change of the state, read from time to time; also the end of which the stream has told before."""
    yield Close()
    while not task.last.prediction.ended:
        prediction = yield from get(task.connection, task.task_id, task.deadline)
        yield from task.takes(replace(task.last, prediction=prediction, preview_file=None))
        if not prediction.ended:
            if task.deadline.left_s <= POLL_LONGEST_S:
                raise overdue(prediction)
            yield Sleep(POLL_LONGEST_S)


def _pause(task: _Followed, failure: HiDreamError, failures: int, wanted_s: float) -> Steps[None]:
    """Wait before the next connection. Raises the failure if there have been too many without an event."""
    pause_s = task.connection.retry.pause_s(failures, wanted_s)
    hopeful = wanted_s <= RETRY_AFTER_MAX_S and (failure.status is None or failure.status in TRANSIENT)
    failure.task_id = task.task_id
    if not hopeful or failures >= task.connection.retry.attempts:
        raise failure
    if task.deadline.left_s <= pause_s:
        raise overdue(task.last.prediction)
    yield Sleep(pause_s)


def _stream(task: _Followed) -> Request:
    request = api_request(task.connection, "GET", f"/predictions/{task.task_id}/events")
    accept = {"Accept": "text/event-stream"} | ({"Last-Event-ID": task.last_id.encode()} if task.last_id else {})
    return replace(request, headers={**request.headers, **accept})


def _is_stream(head: Response) -> bool:
    return head.headers.get("content-type", "").startswith("text/event-stream")


def _message(block: str) -> Message | None:
    """Read the fields of an event; None for comments and for what only tells how long to wait."""
    fields: dict[str, list[str]] = {"event": [], "id": [], "data": []}
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        if name in fields:
            fields[name].append(value.removeprefix(" "))
    if not fields["data"]:
        return None
    return Message("".join(fields["event"][-1:]), "".join(fields["id"][-1:]), "\n".join(fields["data"]))


def _after(last: Event, message: Message) -> Event:
    """What is known after a message. Raises ServerError if it cannot be read; unknown ones change nothing."""
    try:
        data = json.loads(message.data)
        if message.name == "status":
            return _with_state(last, Prediction.of(data))
        if message.name == "progress":
            return replace(last, step=int(data["step"]), steps=int(data["steps"]), preview_file=None)
        if message.name == "preview":
            return replace(last, preview_file=base64.b64decode(data["image"].partition(",")[2], validate=True))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ServerError(f"the server's event cannot be read: {message.data!r:.200}") from error
    return last


def _with_state(last: Event, now: Prediction) -> Event:
    """A new state; a task that another worker begins again begins at its first step."""
    again = now.status != last.status and not now.ended
    return Event(now) if again else replace(last, prediction=now, preview_file=None)
