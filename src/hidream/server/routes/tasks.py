"""Tasks: submit one, look at it, list one's own, cancel and delete them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from hidream.errors import DatabaseUnavailable, InvalidInput, MissingInput, NotFound, PromptRefused
from hidream.outbound import targets
from hidream.parameter import Whole
from hidream.request import ImageRequest
from hidream.safety import prompt as prompt_check
from hidream.server import model_registry, parameters, schema, unused
from hidream.server.answers import (
    base_url,
    input_data,
    prediction_data,
    queue_data,
    success,
    success_with_files,
    sync_timeout,
)
from hidream.server.bodies.body import read_json, read_short_json
from hidream.server.bodies.long_bodies import release
from hidream.server.bodies.long_text import LongText
from hidream.server.client_watch import watch_client
from hidream.server.parameters import Api, Sources
from hidream.server.removal import remove_files
from hidream.server.service import (
    ReadKey,
    Route,
    Service,
    Version,
    ViewKey,
    api_of,
    key_of_submission,
    secret_of,
    service_of,
)
from hidream.store import history, predictions
from hidream.store.admission import IdempotencyRecord, NewTask
from hidream.store.keys import Key
from hidream.store.prediction import Prediction
from hidream.types import SIDE_MIN_PX, Size, Status

LONGEST_POLL_S = 60
PAGE_SIZE, PAGE_SIZE_MAX = 20, 100
PAGE_MAX = 1_000_000_000
IDS_MAX = 500
"""Predictions that one request may delete."""

_ID = re.compile("[0-9a-f]{32}")


async def submit(request: Request) -> Response:
    """POST /api/{v2,v3}/wavespeed-ai/{name}: accept a request; in sync mode also wait for its image.

    It asks for version and key itself: FastAPI, which does that for the others, would take a fifth of its time.
    """
    service, path = service_of(request), request.path_params
    api, key = await api_of(request, path["api"]), await key_of_submission(request)
    model = model_registry.find(service.models, f"{model_registry.VENDOR}/{path['name']}")
    await service.disk_space.check()
    body = await read_json(request, service.settings.server.body_max_bytes)
    asked = _asked(request, model, api, key, body)
    prediction, headers = await _taken_in(service, asked, parameters.sources(body, api))
    await release(request)
    request.state.prediction_id = prediction.id  # for the log
    if asked.submission.enable_sync_mode:
        return await _answer_in_time(request, api, prediction, headers)
    return await success_with_files(await described(service, prediction, api, asked.base_url, if_served=False), headers)


async def result(
    request: Request,
    prediction_id: str,
    api: Version,
    key: ViewKey,
    wait_s: Annotated[float, Query(ge=0, le=LONGEST_POLL_S)] = 0,
) -> Response:
    """GET /api/{v2,v3}/predictions/{id}[/result]: how far it is, at once or when it ends within `wait_s`."""
    service = service_of(request)
    if wait_s:
        with service.stream_limiter.slot(key.id):
            prediction = await awaited(request, prediction_id, key.id, wait_s)
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
    """POST /api/{v2,v3}/predictions: a page of this key's predictions, the newest first."""
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
    strange = unused.unknown(body, schema.listing()["properties"], "this list")
    return success(unused.with_warnings(page, strange, unused.unknown(request.query_params, (), "the URL")))


async def delete(request: Request, prediction_id: str, api: Version, key: ReadKey) -> Response:
    """DELETE /api/{v2,v3}/predictions/{id}: cancel a task that is not finished, hide one that is."""
    service = service_of(request)
    async with service.read_limiter.slot(key.id):  # also for those who do not wait for the answer
        if await predictions.cancel(service.database, prediction_id, key.id):
            return success({"id": prediction_id, "status": Status.CANCELLED})
        deleted = await predictions.delete(service.database, [prediction_id], key.id)
    if deleted:
        await remove_files(service.outputs, deleted)
        return success({"id": prediction_id, "status": Status.DELETED})
    raise unknown(prediction_id)


async def delete_many(request: Request, api: Version, key: ReadKey) -> Response:
    """POST /api/{v2,v3}/predictions/delete: the same for many; those that are not there are not counted."""
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


async def awaited(request: Request, prediction_id: str, key_id: str, timeout_s: float) -> Prediction | None:
    """Wait for a task's end as long as somebody may have the answer. The request's body was read, if it has one.

    Raises ClientDisconnect when the client hangs up meanwhile, Unauthorized when its key is revoked.
    """
    service = service_of(request)
    with service.revocations.watch(secret_of(request)) as revoked:
        async with watch_client(request, revoked) as gone:
            return await service.completion_waiter.wait(prediction_id, key_id, timeout_s, gone)


async def described(
    service: Service, prediction: Prediction, api: Api, url: str, *, if_served: bool = True
) -> dict[str, Any]:
    """Describe a prediction to whoever asks for it; one that waits also with its place in the queue.

    Unless `if_served`, the place is looked up only where no worker serves the model: a submission need not pay for it.
    A database that goes away between its commit and its answer must not make that an error either: the task is in.
    """
    data = await prediction_data(prediction, api, url, service.outputs)
    if prediction.status is Status.CREATED:
        with contextlib.suppress(DatabaseUnavailable):
            workers = await service.worker_counts.workers(prediction.model)
            if if_served or not workers:
                place = await service.queue_status.position(prediction)
                data["queue"] = queue_data(place, prediction.model, workers, service.worker_counts.seen_s)
    return data


def refusal_of(submission: ImageRequest) -> PromptRefused | None:
    """Ask the safety room whether a prompt is refused."""
    try:
        prompt_check.check(submission.prompt_text, submission.negative_prompt, enabled=submission.enable_safety_checker)
    except PromptRefused as refusal:
        return refusal
    return None


def repeat_of(headers: Mapping[str, str], said: object) -> IdempotencyRecord | None:
    """Read by which key a request may be repeated; it is the same if all that was `said` is.

    The digest is of JSON with sorted names, so that neither their order nor blanks make another request.
    """
    key = parameters.idempotency_key(headers.get("idempotency-key"))
    if key is None:
        return None
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"), default=LongText.digest)
    return IdempotencyRecord(key, hashlib.sha256(canonical.encode("ascii")).hexdigest())


def replayed(asked: NewTask, prediction: Prediction) -> dict[str, str]:
    """Say by a header that the answer is of a task that an earlier request has made."""
    return {} if prediction.input is asked.submission else {"Idempotent-Replayed": "true"}


def unknown(prediction_id: str) -> NotFound:
    """Make the error of an id that is not there, or another key's."""
    return NotFound(f"there is no prediction {prediction_id!r:.100} of this API key")


def _asked(request: Request, model: str, api: Api, key: Key, body: dict[str, Any]) -> NewTask:
    """Read all of a request but its images. Raises InvalidInput."""
    service = service_of(request)
    submission = parameters.parse(body, api, service.models[model])
    webhook = parameters.webhook(body, request.query_params)
    if webhook:
        targets.check(webhook, service.allowlist)
        submission = parameters.with_webhook(submission, body)
    url = base_url(request, service.settings.server.public_url)
    idempotency = repeat_of(request.headers, [api.name, model, webhook, body])
    told = unused.of_submission(body, request.query_params, api, model, service.models[model], submission)
    return NewTask(key, model, submission, url, webhook, idempotency, refusal_of(submission), told)


async def _taken_in(service: Service, asked: NewTask, sources: Sources) -> tuple[Prediction, dict[str, str]]:
    """Take a task in with the images that it brings, which are not fetched for one that was, or will be refused."""
    image = sources.image
    if image is None or asked.refusal is not None:
        prediction = await service.enqueuer.submit(asked)
        return prediction, replayed(asked, prediction)
    if made := await service.enqueuer.existing(asked):
        return made, replayed(asked, made)
    whole = asked

    async def bring() -> NewTask:
        nonlocal whole
        whole = await _with_images(service, asked, image, sources)
        return whole

    prediction = await service.enqueuer.submit_with(_at_least(asked, sources), bring)
    return prediction, replayed(whole, prediction)


def _at_least(asked: NewTask, sources: Sources) -> NewTask:
    """Give the least that a task can be, of which the size may follow from an image that is not here yet."""
    size = Size(SIDE_MIN_PX, SIDE_MIN_PX) if sources.sizes else asked.submission.size
    return replace(asked, submission=replace(asked.submission, size=size))


async def _with_images(service: Service, asked: NewTask, source: str | LongText, sources: Sources) -> NewTask:
    """Take the images in that a request brings. Raises InvalidInput."""
    image = await service.input_images.take(asked.key, "image", source)
    mask = None if sources.mask is None else await service.input_images.take(asked.key, "mask", sources.mask)
    submission = replace(asked.submission, image=image, mask=mask)
    if sources.sizes:
        sides = await service.input_images.shown_size("image", image, asked.key.id)
        submission = replace(submission, size=Size.near(*sides))
    return replace(asked, submission=submission)


async def _answer_in_time(request: Request, api: Api, prediction: Prediction, headers: Mapping[str, str]) -> Response:
    service, timeout_s = service_of(request), service_of(request).settings.server.sync_timeout_s
    latest = await awaited(request, prediction.id, prediction.key_id, timeout_s)
    if latest is None:
        raise unknown(prediction.id)
    url = base_url(request, service.settings.server.public_url)
    data = await described(service, latest, api, url)
    return await success_with_files(data if latest.status.final else data | sync_timeout(timeout_s), headers)


def _query(body: dict[str, Any]) -> history.Query:
    given = {name: value for name, value in body.items() if value not in (None, "")}
    model, status = given.get("model"), given.get("status")
    if model is not None:
        model = parameters.text("model", model, "the name of a model")
    shown = [each for each in Status if each is not Status.DELETED]
    if status is not None and status not in shown:
        raise InvalidInput(f"status is {status!r:.100}; accepted: {', '.join(shown)}")
    return history.Query(
        page=Whole(1, PAGE_MAX).read("page", given.get("page", 1)),
        page_size=Whole(1, PAGE_SIZE_MAX).read("page_size", given.get("page_size", PAGE_SIZE)),
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
    ("DELETE", "/api/{api}/predictions/{prediction_id}", delete),
)
