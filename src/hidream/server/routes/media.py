"""Uploads: with a form (the older way), or with a PUT to a URL that is requested before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hidream.errors import BodyTooLarge, InvalidInput, MissingInput
from hidream.parameter import Integer
from hidream.server import parameters, unused
from hidream.server.bodies.body import read_file, read_into, read_short_json
from hidream.server.responses import base_url, success, upload_url
from hidream.server.service import Route, SubmitKey, Version, address_of, service_of
from hidream.types import FORMAT_NAMES, FORMATS, READABLE, ImageFormat

SIZE_MAX = 2**63 - 1
"""The largest `size` that is read as a number, which is the largest integer of the database."""
_ANY_TYPE = (None, "", "application/octet-stream")


async def upload_form(request: Request, api: Version, key: SubmitKey) -> Response:
    """POST /api/{v2,v3}/media/upload/binary: store the file of a form."""
    service = service_of(request)
    await service.disk_space.check()
    await service.input_images.check(key)
    async with service.body_limiter.slot(key.id), service.uploads.part() as part:
        filename = await read_file(request, "file", part, service.input_images.max_bytes)
        upload = await service.input_images.keep(key, "file", part, filename)
    url = upload_url(base_url(request, service.settings.server.public_url), upload.name)
    return success({"type": "image", "download_url": url, "filename": upload.filename, "size": upload.size})


async def announce(request: Request, api: Version, key: SubmitKey) -> Response:
    """POST /api/{v2,v3}/media/uploads: announce an upload; return the URL for the PUT and the one for downloads."""
    service = service_of(request)
    await service.disk_space.check()
    await service.input_images.check(key)
    body = await read_short_json(request)
    filename, image_format, size = _announced(body, service.input_images.max_bytes)
    upload = await service.input_images.announce(key, filename, image_format, size)
    url = upload_url(base_url(request, service.settings.server.public_url), upload.name)
    put = {"method": "PUT", "url": url, "headers": {"Content-Type": upload.media_type}}
    unknown_names = unused.unknown(body, ("filename", "size", "content_type"), "this route")
    return success(unused.with_warnings({"upload": put, "download_url": url}, unknown_names))


async def put(request: Request, name: str) -> Response:
    """PUT /uploads/{name}: store the announced file, once. To know the name is to have access; no key is needed."""
    service = service_of(request)
    await service.disk_space.check()
    async with service.input_images.filling(name, address_of(request)) as (upload, part):
        request.state.key_id = upload.key_id
        await read_into(request, part, upload.size)
        await service.input_images.fill(upload, part)
    return success({"filename": upload.filename, "size": part.size_bytes})


def _announced(body: dict[str, Any], max_bytes: int) -> tuple[str, ImageFormat, int]:
    filename, media_type = body.get("filename"), body.get("content_type")
    if filename is None or body.get("size") is None:
        raise MissingInput("filename or size is absent; accepted: a file's name, and its size in bytes")
    if not isinstance(filename, str):
        raise InvalidInput(f"filename is {filename!r:.100}; accepted: a text")
    size = Integer(1, SIZE_MAX).read("size", body["size"])
    if size > max_bytes:
        raise BodyTooLarge(f"size is {size}; accepted: up to {max_bytes} bytes")
    return parameters.text("filename", filename, "a file's name"), _format(filename, media_type), size


def _format(filename: str, media_type: object) -> ImageFormat:
    """Guess the format for the upload's name; the real format is read from the file later."""
    for image_format in READABLE:
        if media_type == FORMATS[image_format].media_type:
            return image_format
    if media_type not in _ANY_TYPE:
        accepted = ", ".join(FORMATS[each].media_type for each in READABLE)
        raise InvalidInput(f"content_type is {media_type!r:.100}; accepted: {accepted}")
    named = FORMAT_NAMES.get(filename.rpartition(".")[2].lower())
    return named if named in READABLE else ImageFormat.PNG


ROUTES: Sequence[Route] = (
    ("POST", "/api/{api}/media/upload/binary", upload_form),
    ("POST", "/api/{api}/media/uploads", announce),
    ("PUT", "/uploads/{name}", put),
)
