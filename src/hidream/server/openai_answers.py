"""The answers of OpenAI's images API: the images with what is known of them, and errors.

Source: openai-python 3.54.0, `types/images_response.py`.

    2xx    {"created": ..., "background": "opaque", "output_format": ..., "quality": ..., "size": ..., "data": [...],
            "usage": {...}}
    else   {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse, Response

from hidream.errors import InvalidInput, MissingInput, PromptRefused
from hidream.outputs.object_store import ObjectStore
from hidream.request import ImageRequest
from hidream.server.openai_parameters import EDITS, GENERATIONS, quality_of
from hidream.server.responses import output_list
from hidream.store.prediction import Prediction
from hidream.types import ROUND_PX, Size, Status

PREFIX = "/v1/"
NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients retry after a 5xx, which would generate all images again."""
RETRY_AFTER_MAX_S = 120
"""A response with a longer Retry-After also forbids retries: OpenAI's JavaScript client would sleep for up to a day."""
NO_SUCH_PATH = f"there is no such path; accepted: POST {GENERATIONS}, POST {EDITS}, GET /v1/models, GET /v1/models/NAME"

_KINDS = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("permission_error", "insufficient_permissions"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}

Error = tuple[int, str, str | None]
"""The status, message and code of an error."""


def is_ours(path: str) -> bool:
    """Whether errors about a path have OpenAI's format."""
    return path.startswith(PREFIX) or path == PREFIX.rstrip("/")


def failure(
    status: int,
    message: str,
    headers: Mapping[str, str] | None = None,
    code: str | None = None,
    parameter: str = "",
) -> Response:
    """Answer an error; `parameter` is the one it concerns, if any."""
    headers = dict(headers or {})
    if int(headers.get("Retry-After", 0)) > RETRY_AFTER_MAX_S:
        headers |= NO_RETRY
    return JSONResponse({"error": error_data(status, message, code, parameter)}, status, headers)


def error_data(status: int, message: str, code: str | None = None, parameter: str = "") -> dict[str, Any]:
    """Describe an error."""
    kind, usual = _KINDS.get(status, ("invalid_request_error" if status < 500 else "server_error", None))
    if status == 404 and parameter == "model":
        usual = "model_not_found"
    message = message or HTTPStatus(status).phrase
    return {"message": message, "type": kind, "param": parameter or None, "code": code or usual}


def error_of(prediction: Prediction) -> Error:
    """Return the error of a task that was refused, failed or was cancelled."""
    if prediction.code == PromptRefused.code:
        return 400, prediction.error, "content_policy_violation"
    status = 400 if prediction.code in (InvalidInput.code, MissingInput.code) else 500
    return status, prediction.error or f"the task {prediction.id} is {prediction.status}", None


async def images(prediction: Prediction, base_url: str, outputs: ObjectStore) -> dict[str, Any]:
    """Describe the images of a completed task. Raises NotFound, ObjectStoreUnavailable."""
    assert prediction.status is Status.COMPLETED, "others have no images"
    inline = prediction.input.enable_base64_output
    found = await output_list(prediction, base_url, outputs, inline=inline)
    return {
        "created": prediction.created_ms // 1000,
        **about(prediction.input),
        "data": [{"b64_json" if inline else "url": output} for output in found],
        "usage": usage(prediction.input, prediction.input.num_images),
        **warnings(prediction),
    }


def about(request: ImageRequest) -> dict[str, str]:
    """Describe the images of a request as OpenAI does: `quality` is that of its mode."""
    return {
        "background": "opaque",
        "output_format": request.output_format,
        "quality": quality_of(request.mode),
        "size": f"{request.size.width}x{request.size.height}",
    }


def usage(request: ImageRequest, images: int) -> dict[str, Any]:
    """Count the tokens of so many images of a request. Only those of images are counted, and nothing is charged."""
    tokens = images * tokens_of(request.size)
    return {
        "input_tokens": 0,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
        "output_tokens": tokens,
        "output_tokens_details": {"image_tokens": tokens, "text_tokens": 0},
        "total_tokens": tokens,
    }


def tokens_of(size: Size) -> int:
    """Return the number of patches of 16 × 16 pixels, the tokens of the published model, that cover a size."""
    return -(-size.width // ROUND_PX) * -(-size.height // ROUND_PX)


def warnings(prediction: Prediction) -> dict[str, Any]:
    """Return the warnings about a task, if there are any."""
    return {"warnings": list(prediction.warnings)} if prediction.warnings else {}
