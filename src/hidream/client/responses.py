"""What a response of the server means: its data, or one of the errors of `hidream.errors`."""

from __future__ import annotations

import json
import re
from typing import Any

from hidream.client.effects import Response
from hidream.errors import (
    BodyTooLarge,
    Conflict,
    Forbidden,
    HiDreamError,
    InvalidInput,
    NotFound,
    ServerError,
    TooMany,
    Unauthorized,
)

ERRORS: dict[int, type[HiDreamError]] = {
    400: InvalidInput,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: BodyTooLarge,
    422: InvalidInput,
}
"""The error of each status; 429 is TooMany, and any other ServerError."""

_FIELD = re.compile(r"([a-z][a-z0-9_]*(?:\[\d+\])?(?:\.[a-z_]+)?) (?:is|has) ")
"""How the server's messages name the field that they are about."""
_SHOWN_CHARS = 200


def data_of(response: Response) -> Any:  # noqa: ANN401 - what JSON says
    """Return the data of an answer. Raises ServerError if it is none of the API."""
    try:
        return json.loads(response.content)["data"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _with(ServerError(f"the answer is not one of the API: {_shown(response)}"), response) from None


def content_of(response: Response) -> bytes:
    """Return the body of an answer."""
    return response.content


def document_of(response: Response) -> bytes:
    """Return the body of an answer that is JSON. Raises ServerError if it is not, or not all of it."""
    try:
        json.loads(response.content)
    except (ValueError, RecursionError):
        raise _with(ServerError(f"the answer is not JSON: {_shown(response)}"), response) from None
    return response.content


def error_of(response: Response, wanted_s: float = 0.0) -> HiDreamError:
    """Make the error that a response describes, whose Retry-After is `wanted_s`."""
    message = _message(response) or f"HTTP {response.status}: {_shown(response)}"
    if response.status == 429:
        return _with(TooMany(message, round(wanted_s)), response)
    kind = ERRORS.get(response.status, ServerError)
    if 300 <= response.status < 400:
        message = f"the server redirects to {response.headers.get('location', '')!r:.200}; accepted: its own base_url"
    field = _FIELD.match(message) if kind is InvalidInput else None
    return _with(kind(message, field=field[1] if field else ""), response)


def _message(response: Response) -> str:
    """The server's own text: `message` or `error`, as the hosted API writes one or the other."""
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):
        return ""
    said = (body.get("message") or body.get("error") or body.get("detail")) if isinstance(body, dict) else ""
    return said if isinstance(said, str) else ""


def _with(error: HiDreamError, response: Response) -> HiDreamError:
    error.status, error.request_id = response.status, response.headers.get("x-request-id", "")
    error.add_note(f"HTTP status {error.status}, request id {error.request_id or '(none)'}")
    return error


def _shown(response: Response) -> str:
    return repr(response.content[:_SHOWN_CHARS].decode(errors="replace"))
