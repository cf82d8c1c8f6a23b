"""Reading a request's body, up to its maximum length.

A body is a JSON object, a file, or a form with files in it. Long contents are written to a file as they are received;
for that, the request waits for a slot (`limits/concurrency`). `edge/connections` closes connections that send too
slowly.
"""

from __future__ import annotations

import json
import re
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request

from hidream.errors import BodyTooLarge, InvalidInput, MissingInput
from hidream.outputs.part import Part
from hidream.server.bodies.form import FORM_BYTES, Form, FormFile
from hidream.server.bodies.long_bodies import HELD_FILES, KEY_ID, SHORT_BYTES, is_long
from hidream.server.bodies.long_text import LongText, Splitter, refuse_constant

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from hidream.server.service import Service

FORM_TYPE = "multipart/form-data"
TEXTS_BYTES = 2 * FORM_BYTES
"""The total size of the texts in a form that `read_form` reads: two prompts of four bytes a character have 80 KB."""
_BOUNDARY = re.compile(r'[^;]*;\s*boundary=(?:"([^"]{1,70})"|([^\s";]{1,70}))', re.IGNORECASE)


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """Read a JSON object. Raises BodyTooLarge, or InvalidInput if the body or the Content-Type is anything else.

    A long text becomes a LongText, whose file exists until the response starts or `long_bodies.release` is called.
    """
    if (given := media_type(request)) != "application/json":
        raise InvalidInput(f"Content-Type is {given!r:.100}; accepted: application/json")
    try:
        may_be_long = max_bytes > SHORT_BYTES and is_long(request.scope)
        value = await (_long_json if may_be_long else _short_json)(request, max_bytes)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON ({error}); accepted: a JSON object in UTF-8") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"the body is {value!r:.100}; accepted: a JSON object")
    return value


async def read_short_json(request: Request) -> dict[str, Any]:
    """Read the JSON object of a route that accepts no images: nothing is written to disk. Raises as `read_json`."""
    service: Service = request.app.state.service
    return await read_json(request, min(SHORT_BYTES, service.settings.server.body_max_bytes))


async def read_file(request: Request, field: str, part: Part, max_bytes: int) -> str:
    """Read one file of a form into a part; return its filename.

    Raises BodyTooLarge, InvalidInput if the body is not such a form, MissingInput if the file is absent, and
    ObjectStoreUnavailable.
    """
    accepted = f"accepted: multipart/form-data with a file in the field {field!r}"
    form = Form(_boundary(request, accepted), {field: part}, max_bytes)
    await _feed(request, form, part, max_bytes + FORM_BYTES)
    if not form.filenames:
        raise MissingInput(f"{field} is absent; {accepted}")
    return form.filenames[field]


async def read_form(
    request: Request, fields: Mapping[str, str], max_bytes: int, other_file: Callable[[str], None]
) -> tuple[list[tuple[str, str]], dict[str, FormFile]]:
    """Read a form with files. Return its texts, each with its field, and its files by their names.

    `fields` gives the name of the file in each field; of fields with the same name one may have a file. Other files
    are passed to `other_file`. Files exist until the response starts or `long_bodies.release` is called.

    Raises BodyTooLarge, InvalidInput, ObjectStoreUnavailable, TooMany.
    """
    boundary = _boundary(request, "accepted: multipart/form-data, or application/json")
    service: Service = request.app.state.service
    held: AsyncExitStack = getattr(request.state, HELD_FILES)
    await held.enter_async_context(service.body_limiter.slot(getattr(request.state, KEY_ID, "")))
    names = dict.fromkeys(fields.values())
    files = {name: FormFile(await held.enter_async_context(service.uploads.part())) for name in names}
    sinks = {field: files[name] for field, name in fields.items()}
    form = Form(boundary, sinks, max_bytes, TEXTS_BYTES, other_file)
    await _feed(request, form, next(iter(files.values())).part, len(files) * max_bytes + TEXTS_BYTES)
    texts = [(field, _decoded(field, text)) for field, text in form.texts]
    return texts, {fields[field]: files[fields[field]] for field in form.filenames}


def _decoded(field: str, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{field} is {text!r:.100}; accepted: text in UTF-8", field=field) from error


async def _feed(request: Request, form: Form, part: Part, max_bytes: int) -> None:
    """Parse a body as it is received; errors of the disk are reported as those of `part`."""
    async with aclosing(_pieces(request, max_bytes)) as pieces:
        async for piece in pieces:
            await part.written(form.feed, piece)
    form.end()


def _boundary(request: Request, accepted: str) -> bytes:
    """Return the boundary of a form's fields. Raises InvalidInput if the Content-Type is no form's."""
    content_type = request.headers.get("content-type", "")
    boundary = _BOUNDARY.match(content_type)
    if media_type(request) != FORM_TYPE or boundary is None:
        raise InvalidInput(f"Content-Type is {content_type!r:.100}; {accepted}")
    return (boundary[1] or boundary[2]).encode("latin-1")


async def read_into(request: Request, part: Part, max_bytes: int) -> None:
    """Read the body into a part. Raises BodyTooLarge, InvalidInput, ObjectStoreUnavailable."""
    async with aclosing(_pieces(request, max_bytes)) as pieces:
        async for piece in pieces:
            await part.write(piece)


async def _short_json(request: Request, max_bytes: int) -> object:
    """Read a body like `_pieces`, but without a generator, because most bodies arrive in one piece."""
    _check_announced(request, max_bytes)
    body, more = bytearray(), True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise _ended_early()
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        more = message.get("more_body", False)
    return json.loads(body, parse_constant=refuse_constant)


async def _long_json(request: Request, max_bytes: int) -> object:
    """Read a body whose long texts go to files. When each of them is closed, the request's slot is released."""
    service: Service = request.app.state.service
    slot = AsyncExitStack()
    await getattr(request.state, HELD_FILES).enter_async_context(slot)
    await slot.enter_async_context(service.body_limiter.slot(getattr(request.state, KEY_ID, "")))
    open_texts = 0

    async def new() -> LongText:
        nonlocal open_texts
        holding = AsyncExitStack()
        await slot.enter_async_context(holding)
        holding.push_async_callback(ended)
        open_texts += 1
        return LongText(await holding.enter_async_context(service.uploads.part()), holding)

    async def ended() -> None:
        nonlocal open_texts
        open_texts -= 1
        if not open_texts:
            await slot.aclose()

    splitter = Splitter(new)
    async with aclosing(_pieces(request, max_bytes)) as pieces:
        async for piece in pieces:
            await splitter.feed(piece)
    value = await splitter.value()
    if not splitter.texts:
        await slot.aclose()
    return value


async def _pieces(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield a body as it is received. The limit also holds without a Content-Length.

    Raises BodyTooLarge, at once if Content-Length is too large, or InvalidInput if the body ends too early.
    """
    _check_announced(request, max_bytes)
    read = 0
    try:
        async with aclosing(request.stream()) as stream:
            async for piece in stream:
                read += len(piece)
                if read > max_bytes:
                    raise _too_large(max_bytes)
                yield piece
    except ClientDisconnect as error:
        raise _ended_early() from error


def _check_announced(request: Request, max_bytes: int) -> None:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {max_bytes} bytes, the most that is accepted")


def _ended_early() -> InvalidInput:
    return InvalidInput("the body ended before its announced length")


def media_type(request: Request) -> str:
    """Return a body's media type, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
