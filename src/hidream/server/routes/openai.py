"""The routes of OpenAI's images API: responses wait for the images, and errors have OpenAI's format.

Source: openai-python 3.54.0, `types/image_generate_params.py`, `types/images_response.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from hidream.errors import InvalidInput, MissingInput, PromptRefused, Unauthorized
from hidream.server import embedded_files, model_registry, openai_parameters, parameters
from hidream.server.bodies.body import read_json
from hidream.server.bodies.long_bodies import release
from hidream.server.responses import base_url, no_worker, output_list
from hidream.server.results import awaited, unknown
from hidream.server.service import AnyKey, Route, Service, SubmitKey, service_of
from hidream.server.submission import idempotency_record, refusal_of, replayed
from hidream.store import predictions
from hidream.store.admission import NewTask
from hidream.store.keys import Key
from hidream.store.prediction import Prediction
from hidream.types import Status

PREFIX = "/v1/"
CREATED_S = 1_743_984_000
"""When the models were published: 2025-04-07 (HiDream-I1's model cards)."""
NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients retry after a 5xx, which would generate all images again."""
RETRY_AFTER_MAX_S = 120
"""A response with a longer Retry-After also forbids retries: OpenAI's JavaScript client would sleep for up to a day."""

_KINDS = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("permission_error", "insufficient_permissions"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


async def generate(request: Request, key: SubmitKey) -> Response:
    """POST /v1/images/generations: generate 1 to 4 images, and respond when they are finished."""
    service = service_of(request)
    await service.disk_space.check()
    body = await read_json(request, service.settings.server.body_max_bytes)
    model = model_registry.find(service.models, body.get("model") or next(iter(service.models)))
    task = _read(request, key, model, body)
    prediction = await service.enqueuer.submit(task)
    await release(request)
    request.state.prediction_id = prediction.id  # for the log
    timeout_s = service.settings.server.sync_timeout_s
    try:
        latest = await awaited(service, request, prediction.id, key.id, timeout_s)
    except (ClientDisconnect, Unauthorized):
        if task.idempotency is None:  # else the client can repeat the request to get the images
            await predictions.cancel(service.database, prediction.id, key.id)
        raise
    cancelled = latest is not None and await _cancelled(service, task, latest)
    if latest is not None and not (latest.status.final or cancelled):  # it may have ended meanwhile
        latest = await service.completion_waiter.wait(prediction.id, key.id, 0)
    if latest is None:
        raise unknown(prediction.id)
    if latest.status is not Status.COMPLETED:
        return await _not_completed(service, latest, timeout_s, cancelled)
    inline = latest.input.enable_base64_output
    outputs = await output_list(latest, task.base_url, service.outputs, inline=inline)
    data = [{"b64_json" if inline else "url": output} for output in outputs]
    content = {"created": latest.created_ms // 1000, "data": data}
    warnings = {"warnings": latest.warnings} if latest.warnings else {}
    return await embedded_files.json_response(content | warnings, replayed(task, prediction))


async def models(request: Request, key: AnyKey) -> Response:
    """GET /v1/models: the served models."""
    return JSONResponse({"object": "list", "data": [_model(name) for name in service_of(request).models]})


async def model(request: Request, name: str, key: AnyKey) -> Response:
    """GET /v1/models/{name}: one served model."""
    return JSONResponse(_model(model_registry.find(service_of(request).models, name)))


def failure(
    status: int,
    message: str,
    headers: Mapping[str, str] | None = None,
    code: str | None = None,
    parameter: str = "",
) -> Response:
    """Answer an error in OpenAI's format; `parameter` is the one it concerns, if any."""
    kind, usual = _KINDS.get(status, ("invalid_request_error" if status < 500 else "server_error", None))
    message = message or HTTPStatus(status).phrase
    error = {"message": message, "type": kind, "param": parameter or None, "code": code or usual}
    headers = dict(headers or {})
    if int(headers.get("Retry-After", 0)) > RETRY_AFTER_MAX_S:
        headers |= NO_RETRY
    return JSONResponse({"error": error}, status, headers)


def _read(request: Request, key: Key, model: str, body: dict[str, Any]) -> NewTask:
    """Read a request into a new task. Raises InvalidInput."""
    service = service_of(request)
    values = openai_parameters.translated(body, request.query_params)
    variant = service.models[model]
    idempotency_key = parameters.idempotency_key(request.headers.get("idempotency-key"))
    submission = parameters.parse(values, openai_parameters.FORM, variant)
    return NewTask(
        key,
        model,
        submission,
        base_url(request, service.settings.server.public_url),
        idempotency=idempotency_record(idempotency_key, [PREFIX, model, body]),
        refusal=refusal_of(submission),
        warnings=tuple(openai_parameters.unused_of(body, request.query_params, values, variant, submission)),
    )


async def _cancelled(service: Service, task: NewTask, prediction: Prediction) -> bool:
    """Cancel a task that is not finished in time, unless its client can repeat the request, or this process stops."""
    if prediction.status.final or service.completion_waiter.stopped or task.idempotency is not None:
        return False
    return await predictions.cancel(service.database, prediction.id, prediction.key_id)


async def _not_completed(service: Service, prediction: Prediction, timeout_s: float, cancelled: bool) -> Response:
    """Answer for a task that was refused, failed, timed out, or is unfinished when this process stops."""
    if prediction.code == PromptRefused.code:
        return failure(400, prediction.error, code="content_policy_violation")
    if prediction.status.final and not cancelled:
        status = 400 if prediction.code in (InvalidInput.code, MissingInput.code) else 500
        return failure(status, prediction.error, NO_RETRY)
    if service.completion_waiter.stopped:
        message = f"this server is stopping; the images are still generated: GET /api/v3/predictions/{prediction.id}"
        return failure(503, message, NO_RETRY)
    then = "was cancelled" if cancelled else "continues: repeat it with its Idempotency-Key to wait for it again"
    message = f"the image was not finished within {timeout_s:g} seconds, and {then}"
    if not await service.worker_counts.workers(prediction.model):
        message += f"; {no_worker([prediction.model], service.worker_counts.seen_s)}"
    return failure(504, message, NO_RETRY)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED_S, "owned_by": model_registry.VENDOR}


ROUTES: Sequence[Route] = (
    ("POST", "/v1/images/generations", generate),
    ("GET", "/v1/models", models),
    ("GET", "/v1/models/{name:path}", model),
)
