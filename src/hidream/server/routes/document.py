"""The OpenAPI document of this installation."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hidream.server.openapi import document as openapi
from hidream.server.responses import base_url
from hidream.server.service import Route, service_of


async def document(request: Request) -> Response:
    """GET /openapi.json: every route, with its parameters and responses."""
    service = service_of(request)
    url = base_url(request, service.settings.server.public_url)
    return JSONResponse(openapi.document(url, service.models, service.settings.server.upload_max_bytes))


ROUTES: Sequence[Route] = (("GET", "/openapi.json", document),)
