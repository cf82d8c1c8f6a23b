"""Tasks: submit, read, list, cancel and delete them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from hidream.errors import InvalidInput, MissingInput
from hidream.parameter import Integer
from hidream.server import model_registry, parameters, schema, submission, unused
from hidream.server.bodies.body import read_json, read_short_json
from hidream.server.bodies.long_bodies import release
from hidream.server.removal import remove_files
from hidream.server.responses import (
    base_url,
    input_data,
    prediction_data,
    success,
    success_with_files,
    sync_timeout,
)
from hidream.server.results import awaited, described, unknown
from hidream.server.service import (
    ReadKey,
    Route,
    Service,
    Version,
    ViewKey,
    api_of,
    key_of_submission,
    service_of,
)
from hidream.store import history, predictions
from hidream.store.prediction import Prediction
from hidream.types import Status

LONGEST_POLL_S = 60
PAGE_SIZE, PAGE_SIZE_MAX = 20, 100
PAGE_MAX = 1_000_000_000
IDS_MAX = 500
"""The number of predictions that one request may delete."""

_ID = re.compile("[0-9a-f]{32}")


async def submit(request: Request) -> Response:
    """POST /api/{v2,v3}/wavespeed-ai/{name}: enqueue a task; in sync mode also wait for its image.

    It reads the version and the key itself. For the other routes FastAPI does so, which would take a fifth of the time.
    """
    service, path = service_of(request), request.path_params
    api, key = await api_of(request, path["api"]), await key_of_submission(request)
    model = model_registry.find(service.models, f"{model_registry.VENDOR}/{path['name']}")
    await service.disk_space.check()
    body = await read_json(request, service.settings.server.body_max_bytes)
    task, prediction, headers = await submission.submit(service, request, model, api, key, body)
    await release(request)
    request.state.prediction_id = prediction.id  # for the log
    sync_mode = task.submission.enable_sync_mode
    if sync_mode:
        prediction = await _latest(service, request, prediction)
    data = await described(service, prediction, api, task.base_url, if_served=sync_mode)
    if sync_mode and not prediction.status.final:
        data |= sync_timeout(service.settings.server.sync_timeout_s)
    return await success_with_files(data, headers)


async def result(
    request: Request,
    prediction_id: str,
    api: Version,
    key: ViewKey,
    wait_s: Annotated[float, Query(ge=0, le=LONGEST_POLL_S)] = 0,
) -> Response:
    """GET /api/{v2,v3}/predictions/{id}[/result]: the task's state, now or when it ends, after `wait_s` at most."""
    service = service_of(request)
    if wait_s:
        with service.stream_limiter.slot(key.id):
            prediction = await awaited(service, request, prediction_id, key.id, wait_s)
    else:
        async with service.read_limiter.slot(key.id, request):
            prediction = await history.get(service.database, prediction_id, key.id)
    if prediction is None:
        raise unknown(prediction_id)
    url = base_url(request, service.settings.server.public_url)
    data = await described(service, prediction, api, url)
    return await success_with_files(
        unused.with_warnings(data, unused.unknown(request.query_params, ("wait_s",), "the URL"))
    )


async def listing(request: Request, api: Version, key: ViewKey) -> Response:
    """POST /api/{v2,v3}/predictions: a page of this key's predictions, newest first."""
    service = service_of(request)
    body = await read_short_json(request)
    query, with_inputs = _query(body), parameters.flag(body, "include_inputs", False)
    async with service.read_limiter.slot(key.id, request):
        total, found = await history.list_predictions(service.database, key.id, query)
    url = base_url(request, service.settings.server.public_url)
    items = [
        await prediction_data(prediction, api, url, service.outputs, inline=False)
        | ({"input": input_data(prediction.input, url)} if with_inputs else {})
        for prediction in found
    ]
    page = {"page": query.page, "page_size": query.page_size, "total": total, "items": items}
    unknown_names = unused.unknown(body, schema.listing()["properties"], "this list")
    return success(unused.with_warnings(page, unknown_names, unused.unknown(request.query_params, (), "the URL")))


async def delete(request: Request, prediction_id: str, api: Version, key: ReadKey) -> Response:
    """DELETE /api/{v2,v3}/predictions/{id}: cancel a task that is not finished, or delete one that is."""
    service = service_of(request)
    async with service.read_limiter.slot(key.id):  # without the request: a client may disconnect before the response
        if await predictions.cancel(service.database, prediction_id, key.id):
            return success({"id": prediction_id, "status": Status.CANCELLED})
        deleted = await predictions.delete(service.database, [prediction_id], key.id)
    if deleted:
        await remove_files(service.outputs, deleted)
        return success({"id": prediction_id, "status": Status.DELETED})
    raise unknown(prediction_id)


async def cancel(request: Request, prediction_id: str, api: Version, key: ReadKey) -> Response:
    """POST /api/{v2,v3}/predictions/{id}/cancel: cancel a task that is not finished; a finished one stays as it is.

    The answer is the task as it is then. A repeated request changes nothing.
    """
    service = service_of(request)
    async with service.read_limiter.slot(key.id):  # without the request: a client may disconnect before the response
        await predictions.cancel(service.database, prediction_id, key.id)
        prediction = await history.get(service.database, prediction_id, key.id)
    if prediction is None:
        raise unknown(prediction_id)
    url = base_url(request, service.settings.server.public_url)
    data = await described(service, prediction, api, url)
    return await success_with_files(unused.with_warnings(data, unused.unknown(request.query_params, (), "the URL")))


async def delete_many(request: Request, api: Version, key: ReadKey) -> Response:
    """POST /api/{v2,v3}/predictions/delete: cancel or delete several tasks; ids that do not exist are not counted."""
    service = service_of(request)
    body = await read_short_json(request)
    ids = _ids(body)
    async with service.read_limiter.slot(key.id):
        deleted = await predictions.delete(service.database, ids, key.id)
        count = len(deleted)
        if count < len(ids):
            count += await predictions.cancel_all(service.database, ids, key.id)
    await remove_files(service.outputs, deleted)
    return success(unused.with_warnings({"deleted_count": count}, unused.unknown(body, ("ids",), "this route")))


async def _latest(service: Service, request: Request, prediction: Prediction) -> Prediction:
    """Wait for a task's end up to the timeout of sync mode.

    Raises NotFound if the task was deleted meanwhile, and what `awaited` raises.
    """
    timeout_s = service.settings.server.sync_timeout_s
    latest = await awaited(service, request, prediction.id, prediction.key_id, timeout_s)
    if latest is None:
        raise unknown(prediction.id)
    return latest


def _query(body: dict[str, Any]) -> history.Query:
    given = {name: value for name, value in body.items() if value not in (None, "")}
    model, status = given.get("model"), given.get("status")
    if model is not None:
        model = parameters.text("model", model, "the name of a model")
    listed = [each for each in Status if each is not Status.DELETED]
    if status is not None and status not in listed:
        raise InvalidInput(f"status is {status!r:.100}; accepted: {', '.join(listed)}")
    return history.Query(
        page=Integer(1, PAGE_MAX).read("page", given.get("page", 1)),
        page_size=Integer(1, PAGE_SIZE_MAX).read("page_size", given.get("page_size", PAGE_SIZE)),
        created_after_ms=parameters.moment("created_after", given.get("created_after")),
        created_before_ms=parameters.moment("created_before", given.get("created_before")),
        model=model,
        status=None if status is None else Status(status),
    )


def _ids(body: dict[str, Any]) -> list[str]:
    ids = body.get("ids")
    if ids is None:
        raise MissingInput(f"ids is absent; accepted: a list of 1 to {IDS_MAX} ids of predictions")
    if not isinstance(ids, list) or not 1 <= len(ids) <= IDS_MAX or not all(isinstance(each, str) for each in ids):
        raise InvalidInput(f"ids is {ids!r:.100}; accepted: a list of 1 to {IDS_MAX} ids of predictions")
    return [each for each in dict.fromkeys(ids) if _ID.fullmatch(each)]


ROUTES: Sequence[Route] = (
    ("POST", "/api/{api}/wavespeed-ai/{name:path}", submit),
    ("POST", "/api/{api}/predictions", listing),
    ("POST", "/api/{api}/predictions/delete", delete_many),
    ("GET", "/api/{api}/predictions/{prediction_id}", result),
    ("GET", "/api/{api}/predictions/{prediction_id}/result", result),
    ("POST", "/api/{api}/predictions/{prediction_id}/cancel", cancel),
    ("DELETE", "/api/{api}/predictions/{prediction_id}", delete),
)
