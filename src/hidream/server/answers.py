"""What the API answers: the envelope around everything, a prediction in it, and errors in the same shape.

    2xx    {"code": 200, "message": "success", "data": {...}}
    else   {"code": 4xx, "message": "...", "data": null, "error": "..."}

`error` repeats `message` because some clients read the one, some the other; a success must not have it at
this level, since some clients take its mere presence for a failure. A task that failed is a success in this
sense.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from hidream.outputs import files
from hidream.server.parameters import Api
from hidream.store.predictions import Prediction
from hidream.types import Status

SYNC_TIMEOUT_CODE = 5004


def success(data: dict[str, Any]) -> JSONResponse:
    """Answer 200."""
    return JSONResponse({"code": 200, "message": "success", "data": data})


def failure(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Answer an error."""
    body = {"code": status, "message": message or HTTPStatus(status).phrase, "data": None}
    return JSONResponse(body | {"error": body["message"]}, status, headers)


async def prediction_data(prediction: Prediction, api: Api, base_url: str, outputs_dir: Path) -> dict[str, Any]:
    """Describe a prediction, field for field as the documents have it, plus `seed`, `version` and any `warnings`."""
    completed = prediction.status is Status.COMPLETED
    data = {
        "id": prediction.id,
        "model": prediction.model,
        "outputs": [await _output(prediction, base_url, outputs_dir)] if completed else [],
        "urls": {"get": f"{base_url}/api/{api.name}/predictions/{prediction.id}/result"},
        "has_nsfw_contents": [bool(prediction.has_nsfw)] if completed else [],
        "status": prediction.status,
        "created_at": _timestamp(prediction.created_ms),
        "error": prediction.error,
        "executionTime": prediction.execution_ms,
        "timings": {"inference": prediction.inference_ms},
        "seed": prediction.input.seed,
        "version": prediction.version,
    }
    extras = {"code": prediction.code, "warnings": list(prediction.warnings)}
    return data | {name: value for name, value in extras.items() if value}


def sync_timeout(timeout_s: float) -> dict[str, Any]:
    """Give the fields that say: the answer comes before the picture, which is still being drawn."""
    error = f"Sync mode timed out after {timeout_s:g} seconds. The prediction is still processing asynchronously."
    return {"status": Status.PROCESSING, "code": SYNC_TIMEOUT_CODE, "error": error}


def base_url(request: Request, public_url: str) -> str:
    """Tell by which URL the client reaches us: the operator's word, else the proxy's, else the request's."""
    if public_url:
        return public_url.rstrip("/")
    forwarded = {
        part: request.headers.get(f"x-forwarded-{part}", "").partition(",")[0].strip()
        for part in ("proto", "host", "prefix")
    }
    scheme = forwarded["proto"] or request.url.scheme
    host = forwarded["host"] or request.url.netloc
    return f"{scheme}://{host}{forwarded['prefix'].rstrip('/')}"


async def _output(prediction: Prediction, base_url: str, outputs_dir: Path) -> str:
    if not prediction.input.enable_base64_output:
        return f"{base_url}/outputs/{prediction.output_name}"
    return base64.b64encode(await files.read(outputs_dir, prediction.output_name)).decode("ascii")


def _timestamp(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
