"""Downloads of outputs and uploads. To know a file's name is to have access; no key is needed."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from hidream.errors import NotFound
from hidream.outputs.serving import Served, serve
from hidream.server.responses import failure
from hidream.server.service import Route, address_of, service_of


async def output(request: Request, name: str) -> Response:
    """GET /outputs/{name}: an image's file."""
    return _download(await serve(service_of(request).outputs, name, request.method, request.headers))


async def upload(request: Request, name: str) -> Response:
    """GET /uploads/{name}: an uploaded file; its Content-Type is that of its contents, not of its name."""
    service = service_of(request)
    known = await service.input_images.find(name, address_of(request))
    if known is None:
        raise NotFound("there is no such file")
    served = await serve(service.uploads, name, request.method, request.headers)
    if "Content-Type" in served.headers:
        served.headers["Content-Type"] = known.media_type
    return _download(served)


def _download(served: Served) -> Response:
    if served.status == 416:
        size = served.headers["Content-Range"].rpartition("/")[2]
        return failure(416, f"the range is not within the file; accepted: bytes of its {size}", served.headers)
    return StreamingResponse(served.body, served.status, served.headers)


ROUTES: Sequence[Route] = (
    ("GET", "/outputs/{name}", output),
    ("HEAD", "/outputs/{name}", output),
    ("GET", "/uploads/{name}", upload),
    ("HEAD", "/uploads/{name}", upload),
)
