"""What the API answers: the envelope around everything, a prediction in it, and errors in the same shape.

    2xx    {"code": 200, "message": "success", "data": {...}}
    else   {"code": 4xx, "message": "...", "data": null, "error": "..."}

`error` repeats `message` because some clients read the one, some the other; a success must not have it at
this level, since some clients take its mere presence for a failure. A task that failed is a success in this
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
from hidream.store.history import RECENT_MS
from hidream.store.history import QueuePosition as QueuePlace
from hidream.store.prediction import Prediction
from hidream.types import Status

SYNC_TIMEOUT_CODE = 5004
CLIENT_CLOSED_REQUEST = 499
"""What nginx, and our log, call an answer that nobody was there to read."""

OUTPUT_VALID_S = 7 * 24 * 3600
"""How long a signed URL of a bucket is valid from the answer that names it: the longest that S3 signs for."""

_BASE = re.compile(r"https?://([\w.%-]{1,255}|\[[0-9A-Fa-f:.%]{2,60}\])(:[0-9]{1,5})?(/[\w./~%-]{0,255})?", re.ASCII)


def success(data: object, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Answer 200."""
    return JSONResponse(_envelope(data), headers=headers)


async def success_with_files(data: object, headers: Mapping[str, str] | None = None) -> Response:
    """Answer 200 with data in which images may stand whole. Raises NotFound, ObjectStoreUnavailable."""
    return await inline_files.json_response(_envelope(data), headers)


def failure(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Answer an error."""
    body = {"code": status, "message": message or HTTPStatus(status).phrase, "data": None}
    return JSONResponse(body | {"error": body["message"]}, status, headers)


async def prediction_data(
    prediction: Prediction, api: Api, base_url: str, outputs: ObjectStore, *, inline: bool = True
) -> dict[str, Any]:
    """Describe a prediction, field for field as the documents have it, plus `seed`, `version` and any `warnings`.

    With `inline` false the outputs are URLs even if the task asked for base64. Raises ObjectStoreUnavailable, and
    NotFound when base64 was asked for and the file is gone. What may have base64 is written by `delivery`.
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
    """Give the images of a completed task, in their order: to be sent as naked base64, or by their URLs."""
    if not inline:
        return [await outputs.url(name, base_url, OUTPUT_VALID_S) for name in prediction.output_names]
    return [await EmbeddedFile.of(outputs, name) for name in prediction.output_names]


def input_data(submission: ImageRequest, base_url: str) -> dict[str, Any]:
    """Give the request as it was accepted, by the API's names; what was not said and has no default is left out."""
    given = {name: value for name, value in submission.to_json().items() if value not in (None, "", [])}
    return given | {name: upload_url(base_url, given[name]) for name in ("image", "mask") if name in given}


def queue_data(place: QueuePlace, model: str, workers: int, seen_s: float) -> dict[str, Any]:
    """Say where a waiting task stands, 1 is next; without an estimate of when it may be done, `reason` says why."""
    reason = None
    if not workers:
        reason = f"{no_worker([model], seen_s)}; the task waits until one comes"
    elif place.seconds is None:
        reason = f"no image of {model} was finished in the last {RECENT_MS // 60_000} minutes"
    return {
        "position": place.before + 1,
        "estimated_seconds": None if reason else place.seconds,
        "workers": workers,
        "reason": reason,
    }


def no_worker(models: Iterable[str], seen_s: float) -> str:
    """Say that nobody serves these models."""
    return f"no worker that serves {' or '.join(models)} was seen in the last {seen_s:g} seconds"


def sync_timeout(timeout_s: float) -> dict[str, Any]:
    """Give the fields that say: the answer comes before the image, which is still being generated."""
    error = f"Sync mode timed out after {timeout_s:g} seconds. The prediction is still processing asynchronously."
    return {"status": Status.PROCESSING, "code": SYNC_TIMEOUT_CODE, "error": error}


def upload_url(base_url: str, name: str) -> str:
    """Say where an upload is put, and where it is downloaded: always here, for `image` is to be known by it."""
    return f"{base_url}/uploads/{name}"


def base_url(request: Request, public_url: str) -> str:
    """Tell by which URL the client reaches us: the operator's word, else the proxy's, else the request's.

    Raises InvalidInput when these give no URL: it would be written down, and sent to others.
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
    """Write a time as RFC 3339 with three digits behind the second, which every client reads."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
