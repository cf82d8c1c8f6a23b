"""What comes from a request: its body, never more of it than it may be long.

A body is a JSON object, a file, or a form with a file in it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request

from hidream.errors import BodyTooLarge, InvalidInput, MissingInput

FORM_BYTES = 65_536
"""What the other fields and the headers of a form may take beside the file."""

_BOUNDARY = re.compile(r'[^;]*;\s*boundary=(?:"([^"]{1,70})"|([^\s";]{1,70}))', re.IGNORECASE)
_FIELD = re.compile(r'[; ]name="([^"]*)"')
_FILENAME = re.compile(r'filename="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file as a form has it."""

    filename: str
    data: bytes


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """Read the body. Raises BodyTooLarge, or InvalidInput when it is no JSON object or does not say so."""
    media_type = _media_type(request)
    if media_type != "application/json":
        raise InvalidInput(f"Content-Type is {media_type!r:.100}; accepted: application/json")
    try:
        value = json.loads(await read_bytes(request, max_bytes), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON ({error}); accepted: a JSON object in UTF-8") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"the body is {value!r:.100}; accepted: a JSON object")
    return value


async def read_file(request: Request, field: str, max_bytes: int) -> FormFile:
    """Read one file of a form. Raises BodyTooLarge, or InvalidInput when there is no such form or no such file."""
    accepted = f"accepted: multipart/form-data with a file in the field {field!r}"
    boundary = _BOUNDARY.match(request.headers.get("content-type", ""))
    if _media_type(request) != "multipart/form-data" or boundary is None:
        raise InvalidInput(f"Content-Type is {request.headers.get('content-type', '')!r:.100}; {accepted}")
    body = await read_bytes(request, max_bytes + FORM_BYTES)
    delimiter = b"\r\n--" + (boundary[1] or boundary[2]).encode("latin-1")
    for part in (b"\r\n" + body).split(delimiter)[1:]:
        head, gap, data = part.partition(b"\r\n\r\n")
        disposition = _disposition(head)
        name, filename = _FIELD.search(disposition), _FILENAME.search(disposition)
        if gap and name and filename and name[1] == field:
            if len(data) > max_bytes:
                raise BodyTooLarge(f"{field} is larger than {max_bytes} bytes, the most that is accepted")
            return FormFile(filename[1], data)
    raise MissingInput(f"{field} is absent; {accepted}")


async def read_bytes(request: Request, max_bytes: int) -> bytes:
    """Read what comes, whatever Content-Length says or does not say. Raises BodyTooLarge."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise BodyTooLarge(f"the body is larger than {max_bytes} bytes, the most that is accepted")
    except ClientDisconnect as error:
        raise InvalidInput("the body ended before its announced length") from error
    return bytes(body)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _disposition(head: bytes) -> str:
    """Find the header of a part that names its field."""
    for line in head.decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            return value
    return ""


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")
