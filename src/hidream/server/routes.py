"""The routes: each reads its request, makes one call to the store, and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from hidream.errors import NotFound, PromptRefused, Unauthorized
from hidream.outputs import files
from hidream.outputs.encode import MEDIA_TYPES
from hidream.safety import prompt as prompt_check
from hidream.server.answers import base_url, failure, prediction_data, success, sync_timeout
from hidream.server.body import read_json
from hidream.server.parameters import V2, V3, Api, parse
from hidream.settings import Settings
from hidream.store import keys, predictions, workers
from hidream.store.database import Database
from hidream.store.endings import Endings
from hidream.store.keys import Key
from hidream.store.predictions import Prediction
from hidream.types import MODELS

LONGEST_POLL_S = 60
OUTPUT_HEADERS = {
    "Cache-Control": "public, max-age=31536000, immutable",  # a name is never used for two pictures
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with; the application's state."""

    settings: Settings
    database: Database
    endings: Endings


def service_of(request: Request) -> Service:
    """Find the service that a request came to."""
    service = request.app.state.service
    assert isinstance(service, Service), "create_app puts it there"
    return service


async def api_of(api: str) -> Api:
    """Read the version in the path. Raises NotFound."""
    for version in (V2, V3):
        if api == version.name:
            return version
    raise NotFound(f"there is no API version {api!r:.100}; there are: {V2.name}, {V3.name}")


async def key_of(request: Request) -> Key:
    """Find the API key that a request carries. Raises Unauthorized."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Unauthorized("no API key; accepted: the header `Authorization: Bearer KEY`")
    key = await keys.find(service_of(request).database, secret.strip())
    if key is None:
        raise Unauthorized("the API key is not known, or was revoked; `hidream keys create` makes one")
    return key


async def submit(
    request: Request, name: str, api: Annotated[Api, Depends(api_of)], key: Annotated[Key, Depends(key_of)]
) -> Response:
    """POST /api/{v2,v3}/wavespeed-ai/{name}: accept a request; in sync mode also wait for its picture."""
    database, settings = service_of(request).database, service_of(request).settings.server
    model = _model(name)
    submission = parse(await read_json(request, settings.body_max_bytes), api, MODELS[model])
    try:
        prompt_check.check(submission.prompt, enabled=submission.enable_safety_checker)
    except PromptRefused as refusal:
        return await _answer(request, api, await predictions.refuse(database, key.id, model, submission, refusal))
    prediction = await predictions.submit(database, key.id, model, submission, settings.queue_max)
    if submission.enable_sync_mode:
        return await _answer_in_time(request, api, prediction, settings.sync_timeout_s)
    return await _answer(request, api, prediction)


async def result(
    request: Request,
    prediction_id: str,
    api: Annotated[Api, Depends(api_of)],
    key: Annotated[Key, Depends(key_of)],
    wait_s: Annotated[float, Query(ge=0, le=LONGEST_POLL_S)] = 0,
) -> Response:
    """GET /api/{v2,v3}/predictions/{id}[/result]: how far it is, at once or when it ends within `wait_s`."""
    prediction = await service_of(request).endings.settled(prediction_id, key.id, wait_s)
    if prediction is None:
        raise NotFound(f"there is no prediction {prediction_id!r:.100} of this API key")
    return await _answer(request, api, prediction)


async def output(request: Request, name: str) -> Response:
    """GET /outputs/{name}: a picture's file; whoever knows its name may have it."""
    path = files.path_of(service_of(request).settings.outputs_dir, name)
    if not path.is_file():
        raise NotFound("there is no such file")
    return FileResponse(path, media_type=MEDIA_TYPES[files.format_of(name)], headers=OUTPUT_HEADERS)


async def healthz() -> Response:
    """GET /healthz: this process answers."""
    return success({"status": "ok"})


async def readyz(request: Request) -> Response:
    """GET /readyz: what is submitted now will be drawn."""
    service = service_of(request)
    within_s = service.settings.worker.lease_s
    ready = await workers.ready(service.database, within_s)
    if not ready:
        return failure(503, f"no worker with a loaded model was seen in the last {within_s:g} seconds")
    return success({"status": "ready", "workers": len(ready), "versions": sorted({w.version for w in ready})})


async def _answer(request: Request, api: Api, prediction: Prediction) -> Response:
    settings = service_of(request).settings
    url = base_url(request, settings.server.public_url)
    return success(await prediction_data(prediction, api, url, settings.outputs_dir))


async def _answer_in_time(request: Request, api: Api, prediction: Prediction, timeout_s: float) -> Response:
    service = service_of(request)
    latest = await service.endings.settled(prediction.id, prediction.key_id, timeout_s)
    assert latest is not None, "a prediction is not removed"
    if latest.status.final:
        return await _answer(request, api, latest)
    settings = service.settings
    url = base_url(request, settings.server.public_url)
    return success(await prediction_data(latest, api, url, settings.outputs_dir) | sync_timeout(timeout_s))


def _model(name: str) -> str:
    model = f"wavespeed-ai/{name}"
    if model not in MODELS:
        raise NotFound(f"there is no model {model!r:.100}; there are: {', '.join(MODELS)}")
    return model
