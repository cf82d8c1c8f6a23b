"""The calls of the API, without input and output: each yields effects, and returns what the user gets."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from hidream.client.connection import Connection, Deadline, model_name
from hidream.client.effects import READ_S, Emit, Repeat, Request, Response, Sleep, Steps
from hidream.client.input_files import file_of, url_of
from hidream.client.prediction import Prediction, Result, embedded
from hidream.client.responses import content_of, data_of
from hidream.client.retries import call
from hidream.errors import HiDreamError, InvalidInput, ServerError, TimedOut
from hidream.keywords import FILES, OF_CLIENT
from hidream.request import BY_NAME

API = "/api/v3"
WAIT_S = 20.0
"""How long the server may delay a response until the task ends. Proxies close connections after a minute."""
POLL_FIRST_S, POLL_LONGEST_S = 0.5, 2.0
"""The pauses between polls of a server that does not delay; the hosted API's documents ask for 2 s for images."""
PAGE_SIZE = 100
IDS_MAX = 500
"""The number of ids in one request, as the server limits it."""

NO_ROUTE = (404, 405)
"""Statuses of a path that a server does not have."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Submission:
    """A request for images: what the body says, and the files that must be uploaded for it first."""

    model: str
    body: Mapping[str, Any]
    files: Mapping[str, tuple[str, bytes]]
    webhook: str | None
    idempotency_key: str


def submission(
    connection: Connection,
    prompt: str,
    model: str | None,
    webhook: str | None,
    idempotency_key: str | None,
    options: Mapping[str, Any],
) -> Submission:
    """Check a request before anything is sent. Raises InvalidInput, with the name of the field."""
    given = OF_CLIENT.read(options)
    body: dict[str, Any] = {"prompt": BY_NAME["prompt"].kind.read("prompt", prompt)}
    body["output_format"] = BY_NAME["output_format"].default
    body |= {name: BY_NAME[name].kind.to_json(value) for name, value in given.items() if name not in FILES}
    images = {name: given[name] for name in FILES if name in given}
    body |= {name: url for name, value in images.items() if (url := url_of(value))}
    files = {name: file_of(name, value) for name, value in images.items() if name not in body}
    name = connection.model if model is None else model_name(model)
    return Submission(name, body, files, webhook, _key(idempotency_key))


def submit(connection: Connection, submission: Submission, deadline: Deadline) -> Steps[Prediction]:
    """Upload the files, then submit the task: once, however often the connection breaks."""
    urls = {}
    for name, file in submission.files.items():
        urls[name] = yield from upload(connection, file, deadline)
    request = replace(
        api_request(connection, "POST", f"/{submission.model}", {**submission.body, **urls}),
        params={"webhook": submission.webhook} if submission.webhook else {},
        repeat=Repeat.KEYED,
    )
    request = replace(request, headers={**request.headers, "Idempotency-Key": submission.idempotency_key})
    return (yield from call(connection, request, deadline, _prediction))


def get(connection: Connection, task_id: str, deadline: Deadline, wait_s: float = 0.0) -> Steps[Prediction]:
    """Read a task, when it ends or after `wait_s`."""
    request = api_request(connection, "GET", f"/predictions/{_id(task_id)}/result")
    request = replace(request, params={"wait_s": f"{wait_s:.1f}"} if wait_s else {}, read_s=wait_s + READ_S)
    return (yield from _about(task_id, call(connection, request, deadline, _prediction)))


def wait(connection: Connection, task_id: str, deadline: Deadline) -> Steps[Prediction]:
    """Wait until a task ends. Raises TimedOut, with the id of the task, which goes on."""
    pause_s = POLL_FIRST_S
    while True:
        began_s, wait_s = connection.clock_s(), min(WAIT_S, max(round(deadline.left_s - 0.1, 1), 0.0))
        prediction = yield from get(connection, task_id, deadline, wait_s)
        if prediction.ended:
            return prediction
        if deadline.left_s <= pause_s:
            raise overdue(prediction)
        if connection.clock_s() - began_s < min(wait_s, pause_s):  # the server does not delay
            yield Sleep(pause_s)
            pause_s = min(pause_s * 2, POLL_LONGEST_S)


def result(connection: Connection, task_id: str, deadline: Deadline, known: Prediction | None = None) -> Steps[Result]:
    """Wait for a task and download its images. Raises what went wrong with it."""
    prediction = known if known is not None and known.ended else (yield from wait(connection, task_id, deadline))
    prediction.check()
    files = []
    for output in prediction.outputs:
        file = embedded(output)
        files.append((yield from _about(task_id, download(connection, output, deadline))) if file is None else file)
    if not files:
        raise ServerError(f"the completed task {task_id} has no outputs")
    return Result(prediction, tuple(files))


def generate(connection: Connection, submission: Submission, deadline: Deadline) -> Steps[Result]:
    """Submit a task, wait for it and download its images."""
    prediction = yield from submit(connection, submission, deadline)
    return (yield from result(connection, prediction.id, deadline, prediction))


def download(connection: Connection, url: str, deadline: Deadline) -> Steps[bytes]:
    """Download a file without the key, because its URL may lead elsewhere."""
    request = Request("GET", url, {}, redirects=True)
    return (yield from call(connection, request, deadline, content_of))


def upload(connection: Connection, file: tuple[str, bytes], deadline: Deadline) -> Steps[str]:
    """Upload an image file; return its URL. A second upload after a failure is harmless: unused ones are deleted."""
    request = replace(api_request(connection, "POST", "/media/upload/binary"), file=file)
    return (yield from call(connection, request, deadline, lambda response: _value(response, "download_url", str)))


def cancel(connection: Connection, task_id: str, deadline: Deadline) -> Steps[Prediction]:
    """Cancel a task that is not finished, and return what became of it.

    Raises ServerError if the server has no route for it, such as the hosted API: a DELETE would delete a task that has
    finished meanwhile.
    """
    request = api_request(connection, "POST", f"/predictions/{_id(task_id)}/cancel")
    try:
        return (yield from _about(task_id, call(connection, request, deadline, _prediction)))
    except HiDreamError as error:
        if error.status not in NO_ROUTE:
            raise
        prediction = yield from get(connection, task_id, deadline)  # which raises NotFound if there is no such task
        if prediction.ended:
            return prediction
        refused = ServerError(
            f"{connection.base_url} cannot cancel a task without deleting one that has just finished; accepted: "
            "`delete`, if its images are not wanted either"
        )
        refused.task_id = task_id
        raise refused from error


def delete(connection: Connection, ids: Iterable[str], deadline: Deadline) -> Steps[int]:
    """Delete finished tasks with their images, and cancel others; return how many there were."""
    each_id = ids if isinstance(ids, Iterable) and not isinstance(ids, str) else [ids]
    wanted, count = [_id(each) for each in each_id], 0
    for first in range(0, len(wanted), IDS_MAX):
        body = {"ids": wanted[first : first + IDS_MAX]}
        request = replace(api_request(connection, "POST", "/predictions/delete", body), repeat=Repeat.UNRECEIVED)
        count += yield from call(connection, request, deadline, lambda found: _value(found, "deleted_count", int))
    return count


def listing(connection: Connection, conditions: Mapping[str, Any], timeout_s: float | None) -> Steps[None]:
    """Emit all tasks that meet the conditions, newest first; each page has the time limit.

    A page begins where the one before ended, by time. So tasks that are submitted or deleted meanwhile shift nothing.
    """
    body = {name: _condition(name, value) for name, value in conditions.items() if value is not None}
    seen: set[str] = set()
    page = 1
    while True:
        request = api_request(connection, "POST", "/predictions", {**body, "page": page, "page_size": PAGE_SIZE})
        deadline = connection.deadline(timeout_s)
        items = yield from call(connection, request, deadline, _items)
        new = {item.id: item for item in items if item.id not in seen}
        seen |= new.keys()
        for item in new.values():
            yield Emit(item)
        if len(items) < PAGE_SIZE or (page > 1 and not new):  # a server that repeats its pages would do so for ever
            return
        bound = _just_after(items[-1].created_at)
        page = page + 1 if bound in (None, body.get("created_before")) else 1
        if bound is not None:
            body["created_before"] = bound


def models(connection: Connection, deadline: Deadline) -> Steps[Any]:
    """Read what the server says about its models."""
    return (yield from call(connection, api_request(connection, "GET", "/models"), deadline, data_of))


def account(connection: Connection, path: str, name: str, kind: type[T], deadline: Deadline) -> Steps[T]:
    """Read one of the values that a route without parameters says."""
    request = api_request(connection, "GET", path)
    return (yield from call(connection, request, deadline, lambda found: _value(found, name, kind)))


def api_request(connection: Connection, method: str, path: str, json: object = None) -> Request:
    """A request to the API, with an id of its own for the server's log."""
    return Request(method, f"{connection.base_url}{API}{path}", connection.headers(uuid.uuid4().hex), json=json)


def overdue(prediction: Prediction) -> TimedOut:
    """The error of a task that was not finished in time."""
    late = TimedOut(f"task {prediction.id} was not finished in time; it is still {prediction.status}")
    late.task_id = prediction.id
    return late


def _about(task_id: str, steps: Steps[T]) -> Steps[T]:
    """Name the task in the errors of a call."""
    try:
        return (yield from steps)
    except HiDreamError as error:
        error.task_id = task_id
        raise


def _prediction(response: Response) -> Prediction:
    return Prediction.of(data_of(response))


def _items(response: Response) -> list[Prediction]:
    return [Prediction.of(item) for item in _value(response, "items", list)]


def _value(response: Response, name: str, kind: type[T]) -> T:
    """Return a value of an answer; a whole number is a float too. Raises ServerError if it is not there."""
    data = data_of(response)
    value = data.get(name) if isinstance(data, dict) else None
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind):
        raise ServerError(f"the server's answer has no {name}: {data!r:.200}")
    return value


def _condition(name: str, value: object) -> str | bool:
    """Write a condition as the API does; a time without an offset is local time, as everywhere in Python."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if not isinstance(value, str | bool):
        raise InvalidInput(f"{name} is {value!r:.100}; accepted: a text, or for a time a datetime", field=name)
    return value


def _just_after(created_at: str) -> str | None:
    """The next millisecond after a time of the API, in which all tasks of the same millisecond lie before it."""
    try:
        return (datetime.fromisoformat(created_at) + timedelta(milliseconds=1)).isoformat()
    except ValueError:
        return None


def _id(task_id: str) -> str:
    if not isinstance(task_id, str) or not task_id.isalnum() or not task_id.isascii():
        raise InvalidInput(f"id is {task_id!r:.100}; accepted: the id of a task", field="id")
    return task_id


def _key(text: str | None) -> str:
    if text is None:
        return uuid.uuid4().hex
    if not isinstance(text, str) or not 1 <= len(text) <= 255 or not (text.isascii() and text.isprintable()):
        accepted = "1 to 255 printable ASCII characters"
        raise InvalidInput(f"idempotency_key is {text!r:.100}; accepted: {accepted}", field="idempotency_key")
    return text
