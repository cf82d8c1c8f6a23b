"""A request's body, read as the JSON object that it must be, and never further than it may be long."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from hidream.errors import BodyTooLarge, InvalidInput


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """Read the body. Raises BodyTooLarge, or InvalidInput when it is no JSON object or does not say so."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise InvalidInput(f"Content-Type is {media_type!r:.100}; accepted: application/json")
    try:
        value = json.loads(await _read(request, max_bytes), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON ({error}); accepted: a JSON object in UTF-8") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"the body is {value!r:.100}; accepted: a JSON object")
    return value


async def _read(request: Request, max_bytes: int) -> bytes:
    """Read what comes, whatever Content-Length says or does not say."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise BodyTooLarge(f"the body is larger than {max_bytes} bytes, the most that is accepted")
    except ClientDisconnect as error:
        raise InvalidInput("the body ended before its announced length") from error
    return bytes(body)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")
