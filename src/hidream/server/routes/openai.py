"""The routes of OpenAI's images API: responses wait for the images, or stream them.

Source: openai-python 3.54.0, `resources/images.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from hidream.errors import Unauthorized
from hidream.server import embedded_files, model_registry, openai_answers, openai_parameters, parameters
from hidream.server.bodies.body import FORM_TYPE, media_type, read_form, read_json
from hidream.server.bodies.long_bodies import release
from hidream.server.openai_answers import NO_RETRY, PREFIX, failure
from hidream.server.openai_parameters import EDITS, FORM, GENERATIONS, Translated
from hidream.server.openai_stream import ImageStream, PartialImages, stops
from hidream.server.responses import base_url, no_worker
from hidream.server.results import awaited, unknown
from hidream.server.service import AnyKey, Route, Service, SubmitKey, secret_of, service_of
from hidream.server.submission import enqueue, idempotency_record, refusal_of
from hidream.store import predictions
from hidream.store.admission import NewTask
from hidream.store.keys import Key
from hidream.store.prediction import Prediction
from hidream.types import Status

CREATED_S = 1_743_984_000
"""When the models were published: 2025-04-07 (HiDream-I1's model cards)."""
END_USER_DIGITS = 16
"""The hexadecimal digits of an end user's digest in the log: an operator who knows the name can compute it."""

_EVENTS = {GENERATIONS: "image_generation", EDITS: "image_edit"}
"""How the types of the events begin."""


async def generate(request: Request, key: SubmitKey) -> Response:
    """POST /v1/images/generations: generate 1 to 4 images, and respond when they are finished."""
    service = service_of(request)
    await service.disk_space.check()
    body = await read_json(request, service.settings.server.body_max_bytes)
    return await _respond(request, key, GENERATIONS, body)


async def edit(request: Request, key: SubmitKey) -> Response:
    """POST /v1/images/edits: the same, from an image in a form or in JSON."""
    service = service_of(request)
    await service.disk_space.check()
    if media_type(request) != FORM_TYPE:
        body = await read_json(request, service.settings.server.body_max_bytes)
    else:
        form = await read_form(
            request, openai_parameters.FILES, service.input_images.max_bytes, openai_parameters.refuse_file
        )
        body = openai_parameters.of_form(*form)
    return await _respond(request, key, EDITS, body)


async def models(request: Request, key: AnyKey) -> Response:
    """GET /v1/models: the served models, and their aliases."""
    service = service_of(request)
    return JSONResponse({"object": "list", "data": [_model(service, name) for name in _names(service)]})


async def model(request: Request, name: str, key: AnyKey) -> Response:
    """GET /v1/models/{name}: one served model, or an alias."""
    service = service_of(request)
    return JSONResponse(_model(service, name if name in service.aliases else _find(service, name)))


async def _respond(request: Request, key: Key, path: str, body: dict[str, Any]) -> Response:
    """Enqueue the task of a request, and answer with its images or with a stream."""
    service, asked_model = service_of(request), body.get("model")
    model = _find(service, asked_model or next(iter(service.models)))
    inline = isinstance(asked_model, str) and asked_model.startswith(openai_parameters.BASE64_MODELS)
    translated = openai_parameters.translated(body, request.query_params, inline=inline)
    if path == EDITS:
        openai_parameters.check_edit(translated.values)
    sources = parameters.sources(translated.values, FORM)
    task = _task(request, key, path, model, body, translated)
    if translated.end_user:
        digest = hashlib.sha256(translated.end_user.encode()).hexdigest()
        request.state.end_user = digest[:END_USER_DIGITS]  # for the log
    with ExitStack() as held:
        if translated.stream:
            held.enter_context(service.stream_limiter.slot(key.id))
        prediction, headers = await enqueue(service, task, sources)
        await release(request)
        request.state.prediction_id = prediction.id  # for the log
        if not translated.stream:
            return await _images(request, task, prediction, headers)
        if prediction.status.final and prediction.status is not Status.COMPLETED:
            return _failed(prediction)
        revoked = held.enter_context(service.revocations.watch(secret_of(request)))
        partial_images = PartialImages(_EVENTS[path], translated.partial_images)
        cancels = task.idempotency is None
        return ImageStream(service, prediction, partial_images, revoked, held.pop_all(), headers, cancels=cancels)


async def _images(request: Request, task: NewTask, prediction: Prediction, headers: dict[str, str]) -> Response:
    """Wait for a task, and answer with its images."""
    service = service_of(request)
    timeout_s = service.settings.server.sync_timeout_s
    try:
        latest = await awaited(service, request, prediction.id, task.key.id, timeout_s)
    except (ClientDisconnect, Unauthorized):
        if task.idempotency is None:  # else the client can repeat the request to get the images
            await predictions.cancel(service.database, prediction.id, task.key.id)
        raise
    cancelled = latest is not None and await _cancelled(service, task, latest)
    if latest is not None and not (latest.status.final or cancelled):  # it may have ended meanwhile
        latest = await service.completion_waiter.wait(prediction.id, task.key.id, 0)
    if latest is None:
        raise unknown(prediction.id)
    if latest.status is not Status.COMPLETED:
        return await _not_completed(service, latest, timeout_s, cancelled)
    content = await openai_answers.images(latest, task.base_url, service.outputs)
    return await embedded_files.json_response(content, headers)


def _task(request: Request, key: Key, path: str, model: str, body: dict[str, Any], translated: Translated) -> NewTask:
    """Read a request into a new task. Raises InvalidInput."""
    service, query = service_of(request), request.query_params
    variant, values = service.models[model], translated.values
    idempotency_key = parameters.idempotency_key(request.headers.get("idempotency-key"))
    submission = parameters.parse(values, FORM, variant)
    return NewTask(
        key,
        model,
        submission,
        base_url(request, service.settings.server.public_url),
        idempotency=idempotency_record(idempotency_key, [PREFIX if path == GENERATIONS else path, model, body]),
        refusal=refusal_of(submission),
        warnings=tuple(openai_parameters.unused_of(body, query, values, variant, submission, path)),
    )


async def _cancelled(service: Service, task: NewTask, prediction: Prediction) -> bool:
    """Cancel a task that is not finished in time, unless its client can repeat the request, or this process stops."""
    if prediction.status.final or service.completion_waiter.stopped or task.idempotency is not None:
        return False
    return await predictions.cancel(service.database, prediction.id, prediction.key_id)


async def _not_completed(service: Service, prediction: Prediction, timeout_s: float, cancelled: bool) -> Response:
    """Answer for a task that was refused, failed, timed out, or is unfinished when this process stops."""
    if prediction.status.final and not cancelled:
        return _failed(prediction)
    if service.completion_waiter.stopped:
        return failure(503, stops(prediction.id), NO_RETRY)
    then = "was cancelled" if cancelled else "continues: repeat it with its Idempotency-Key to wait for it again"
    message = f"the image was not finished within {timeout_s:g} seconds, and {then}"
    if not await service.worker_counts.workers(prediction.model):
        message += f"; {no_worker([prediction.model], service.worker_counts.seen_s)}"
    return failure(504, message, NO_RETRY)


def _failed(prediction: Prediction) -> Response:
    """Answer for a task that was refused, failed, or was cancelled by another request."""
    status, message, code = openai_answers.error_of(prediction)
    return failure(status, message, None if code else NO_RETRY, code)


def _find(service: Service, name: object) -> str:
    """Return a model's full name, given its own name or an alias. Raises NotFound, which lists the names."""
    return model_registry.find(service.models, name, service.aliases)


def _names(service: Service) -> list[str]:
    return [*service.models, *service.aliases]


def _model(service: Service, name: str) -> dict[str, Any]:
    """Describe a model; an alias has its model as `root`."""
    root = {"root": service.aliases[name]} if name in service.aliases else {}
    return {"id": name, "object": "model", "created": CREATED_S, "owned_by": model_registry.VENDOR, **root}


ROUTES: Sequence[Route] = (
    ("POST", GENERATIONS, generate),
    ("POST", EDITS, edit),
    ("GET", "/v1/models", models),
    ("GET", "/v1/models/{name:path}", model),
)
