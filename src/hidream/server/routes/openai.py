"""The routes of OpenAI's images API, for its clients: they wait for the pictures, and errors have a form of their own.

Source: openai-python 3.54.0, `types/image_generate_params.py`, `types/images_response.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hidream.errors import InvalidInput, PromptRefused
from hidream.server import catalogue, parameters
from hidream.server.answers import base_url, output_list
from hidream.server.body import read_json
from hidream.server.parameters import Api
from hidream.server.routes.tasks import refusal_of, repeat_of, replayed, unknown
from hidream.server.service import AnyKey, Route, SubmitKey, service_of
from hidream.store import predictions
from hidream.store.intake import Asked
from hidream.store.prediction import Prediction
from hidream.types import IMAGES_MAX, STEPS_MAX, ImageFormat, Status

PREFIX = "/v1/"
FORM = Api("v3", smallest_px=256, base64_output=False, output_format=ImageFormat.PNG, extras=True)
"""Its defaults: URLs, and PNG, as DALL-E's pictures are."""
CREATED_S = 1_743_984_000
"""When the models were published: 2025-04-07 (HiDream-I1's model cards)."""
NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients repeat what ended with a 5xx, which would draw everything again."""
PATIENCE_S = 120
"""A Retry-After beyond this forbids it too: their client for JavaScript would sleep all of it, up to a day, unasked."""

_KINDS = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("permission_error", "insufficient_permissions"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}
_KEPT = ("prompt", "seed", "negative_prompt", "guidance_scale", "output_format", "mode", "loras")


async def generate(request: Request, key: SubmitKey) -> Response:
    """POST /v1/images/generations: draw 1 to 4 pictures, and answer when they are there."""
    service = service_of(request)
    body = await read_json(request, service.settings.server.body_max_bytes)
    model = catalogue.find(service.models, body.get("model") or next(iter(service.models)))
    submission = parameters.parse(_translated(body), FORM, service.models[model])
    url = base_url(request, service.settings.server.public_url)
    repeat = repeat_of(request.headers, [PREFIX, model, body])
    asked = Asked(key, model, submission, url, repeat=repeat, refusal=refusal_of(submission))
    prediction = await service.intake.submit(asked)
    request.state.prediction_id = prediction.id  # for the log
    timeout_s = service.settings.server.sync_timeout_s
    latest = await service.endings.settled(prediction.id, key.id, timeout_s)
    if latest is None:
        raise unknown(prediction.id)
    if latest.status is not Status.COMPLETED:
        await predictions.cancel(service.database, prediction.id, key.id)  # nobody could ask for it later
        return _undone(latest, timeout_s)
    inline = latest.input.enable_base64_output
    outputs = await output_list(latest, url, service.outputs, inline=inline)
    data = [{"b64_json" if inline else "url": output} for output in outputs]
    return JSONResponse({"created": latest.created_ms // 1000, "data": data}, headers=replayed(asked, prediction))


async def models(request: Request, key: AnyKey) -> Response:
    """GET /v1/models: what is served."""
    return JSONResponse({"object": "list", "data": [_model(name) for name in service_of(request).models]})


async def model(request: Request, name: str, key: AnyKey) -> Response:
    """GET /v1/models/{name}: one of them."""
    return JSONResponse(_model(catalogue.find(service_of(request).models, name)))


def failure(status: int, message: str, headers: Mapping[str, str] | None = None, code: str | None = None) -> Response:
    """Answer an error in OpenAI's form; `param` is the parameter that the message begins with, if it does."""
    kind, usual = _KINDS.get(status, ("invalid_request_error" if status < 500 else "server_error", None))
    message = message or HTTPStatus(status).phrase
    first = message.partition(" ")[0]
    param = first if first in (*_KEPT, "n", "steps", "size", "response_format", "model") else None
    error = {"message": message, "type": kind, "param": param, "code": code or usual}
    headers = dict(headers or {})
    if int(headers.get("Retry-After", 0)) > PATIENCE_S:
        headers |= NO_RETRY
    return JSONResponse({"error": error}, status, headers)


def _translated(body: dict[str, Any]) -> dict[str, Any]:
    """Say by v3's names what OpenAI's say. Raises InvalidInput under the name that was sent."""
    given = {name: value for name, value in body.items() if value is not None}
    form = given.get("response_format", "url")
    if form not in ("url", "b64_json"):
        raise InvalidInput(f"response_format is {form!r:.100}; accepted: url, b64_json")
    said = {name: given[name] for name in _KEPT if name in given} | {"enable_base64_output": form == "b64_json"}
    said["num_images"] = parameters.whole_number("n", given.get("n", 1), 1, IMAGES_MAX)
    if "steps" in given:
        said["num_inference_steps"] = parameters.whole_number("steps", given["steps"], 1, STEPS_MAX)
    if given.get("size", "auto") != "auto":
        said["size"] = given["size"]
    return said


def _undone(prediction: Prediction, timeout_s: float) -> Response:
    """Answer for a task that was refused, has failed or takes too long."""
    if prediction.code == PromptRefused.code:
        return failure(400, prediction.error, code="content_policy_violation")
    if prediction.status.final:
        status = 400 if prediction.code in (InvalidInput.code, 1400) else 500
        return failure(status, prediction.error, NO_RETRY)
    return failure(504, f"the picture was not done within {timeout_s:g} seconds, and was cancelled", NO_RETRY)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED_S, "owned_by": catalogue.VENDOR}


ROUTES: Sequence[Route] = (
    ("POST", "/v1/images/generations", generate),
    ("GET", "/v1/models", models),
    ("GET", "/v1/models/{name:path}", model),
)
