"""Responses of the API: the envelope, a prediction in it, and errors in the same shape.

    2xx    {"code": 200, "message": "success", "data": {...}}
    else   {"code": 4xx, "message": "...", "data": null, "error": "..."}

`error` repeats `message`, because some clients read one and some the other. A success must not have `error` at this
level, because some clients take its presence for a failure. The response about a failed task is a success in this
sense.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hidream.errors import InvalidInput
from hidream.outputs.object_store import ObjectStore
from hidream.request import ImageRequest
from hidream.server import embedded_files as inline_files
from hidream.server.embedded_files import EmbeddedFile
from hidream.server.parameters import Api
from hidream.store.history import RECENT_MS, QueuePosition
from hidream.store.prediction import Prediction
from hidream.types import Status

SYNC_TIMEOUT_CODE = 5004
CLIENT_CLOSED_REQUEST = 499
"""The status that nginx and our access log give to a request whose client disconnected before the response."""

OUTPUT_VALID_S = 7 * 24 * 3600
"""How long a signed URL of a bucket is valid after the response that contains it: the maximum of S3."""

_BASE = re.compile(r"https?://([\w.%-]{1,255}|\[[0-9A-Fa-f:.%]{2,60}\])(:[0-9]{1,5})?(/[\w./~%-]{0,255})?", re.ASCII)


def success(data: object) -> JSONResponse:
    """Answer 200."""
    return JSONResponse(_envelope(data))


async def success_with_files(data: object, headers: Mapping[str, str] | None = None) -> Response:
    """Answer 200 with data that may contain embedded files. Raises NotFound, ObjectStoreUnavailable."""
    return await inline_files.json_response(_envelope(data), headers)


def failure(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Answer an error; without a `message`, with the status's standard phrase."""
    body = {"code": status, "message": message or HTTPStatus(status).phrase, "data": None}
    return JSONResponse(body | {"error": body["message"]}, status, headers)


async def prediction_data(
    prediction: Prediction, api: Api, base_url: str, outputs: ObjectStore, *, inline: bool = True
) -> dict[str, Any]:
    """Describe a prediction with the fields of WaveSpeed's documents, plus `seed`, `version` and any `warnings`.

    Without `inline`, the outputs are URLs even if the task requested base64. Send data that may contain base64 with
    `success_with_files`. Raises ObjectStoreUnavailable, and NotFound if base64 was requested and the file is missing.
    """
    completed = prediction.status is Status.COMPLETED
    inline = inline and prediction.input.enable_base64_output
    data = {
        "id": prediction.id,
        "model": prediction.model,
        "outputs": await output_list(prediction, base_url, outputs, inline=inline) if completed else [],
        "urls": {"get": f"{base_url}/api/{api.name}/predictions/{prediction.id}/result"},
        "has_nsfw_contents": list(prediction.nsfw) if completed else [],
        "status": prediction.status,
        "created_at": timestamp(prediction.created_ms),
        "error": prediction.error,
        "executionTime": prediction.execution_ms,
        "timings": {"inference": prediction.inference_ms},
        "seed": prediction.input.seed,
        "version": prediction.version,
    }
    extras = {"code": prediction.code, "warnings": list(prediction.warnings)}
    return data | {name: value for name, value in extras.items() if value}


async def output_list(
    prediction: Prediction, base_url: str, outputs: ObjectStore, *, inline: bool
) -> list[str | EmbeddedFile]:
    """List the images of a completed task in their order: embedded as base64 without a data: prefix, or as URLs."""
    if not inline:
        return [await outputs.url(name, base_url, OUTPUT_VALID_S) for name in prediction.output_names]
    return [await EmbeddedFile.of(outputs, name) for name in prediction.output_names]


def input_data(submission: ImageRequest, base_url: str) -> dict[str, Any]:
    """Describe the accepted request by the API's names, without parameters that were not given and have no default."""
    given = {name: value for name, value in submission.to_json().items() if value not in (None, "", [])}
    return given | {name: upload_url(base_url, given[name]) for name in ("image", "mask") if name in given}


def queue_data(position: QueuePosition, model: str, workers: int, seen_s: float) -> dict[str, Any]:
    """Describe a waiting task's position, 1 for the next one. If there is no estimate, `reason` says why."""
    reason = None
    if not workers:
        reason = f"{no_worker([model], seen_s)}; the task waits until one comes"
    elif position.seconds is None:
        reason = f"no image of {model} was finished in the last {RECENT_MS // 60_000} minutes"
    return {
        "position": position.before + 1,
        "estimated_seconds": None if reason else position.seconds,
        "workers": workers,
        "reason": reason,
    }


def no_worker(models: Iterable[str], seen_s: float) -> str:
    """Say that no worker serves these models."""
    return f"no worker that serves {' or '.join(models)} was seen in the last {seen_s:g} seconds"


def sync_timeout(timeout_s: float) -> dict[str, Any]:
    """Return the fields of a sync-mode response that is sent before the image is finished."""
    error = f"Sync mode timed out after {timeout_s:g} seconds. The prediction is still processing asynchronously."
    return {"status": Status.PROCESSING, "code": SYNC_TIMEOUT_CODE, "error": error}


def upload_url(base_url: str, name: str) -> str:
    """Return the URL that an upload is put to and downloaded from. It is always ours, so that `image` can accept it."""
    return f"{base_url}/uploads/{name}"


def base_url(request: Request, public_url: str) -> str:
    """Return the URL by which clients reach us: from the settings, else the proxy's headers, else the request.

    Raises InvalidInput if the headers form no valid URL, because it would be stored and sent to others.
    """
    if public_url:
        return public_url.rstrip("/")
    headers, server = request.headers, request.scope.get("server") or ("localhost", None)
    forwarded = {
        part: headers.get(f"x-forwarded-{part}", "").partition(",")[0].strip() for part in ("proto", "host", "prefix")
    }
    scheme = forwarded["proto"] or request.scope["scheme"]
    host = forwarded["host"] or headers.get("host") or (f"{server[0]}:{server[1]}" if server[1] else server[0])
    url = f"{scheme}://{host}{forwarded['prefix'].rstrip('/')}"
    if not _BASE.fullmatch(url):
        raise InvalidInput(f"the headers Host or X-Forwarded-… say {url!r:.100}; accepted: what makes a URL")
    return url


def _envelope(data: object) -> dict[str, Any]:
    return {"code": 200, "message": "success", "data": data}


def timestamp(ms: int) -> str:
    """Write a time as RFC 3339 with milliseconds, which every client can parse."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
