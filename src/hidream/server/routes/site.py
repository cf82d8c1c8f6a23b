"""The documents as a site: the static files that `make docs` builds, which the wheel contains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from hidream.errors import NotFound
from hidream.server.service import Route

FOLDER = Path(__file__).parents[1] / "site"

POLICY = "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
"""What a page may load: only files of this server. The generator's theme has scripts and styles inside its pages."""


async def start() -> Response:
    """GET /docs: the start page; without the slash at the end, its relative links would lead elsewhere."""
    return RedirectResponse("docs/")


async def page(request: Request) -> Response:
    """GET /docs/{path}: a page, its Markdown, or what it shows; a 404 if the site was not built or has no such file."""
    return await serve(FOLDER, request)


async def serve(folder: Path, request: Request) -> Response:
    """Serve a file of a site, below `folder` only. Raises NotFound."""
    path = request.path_params["path"] or "index.html"
    if not (folder / "index.html").is_file():
        raise NotFound("the documents are not built here; they are in docs/ of the repository; `make docs` builds them")
    try:
        response = await StaticFiles(directory=folder).get_response(path, request.scope)
    except (HTTPException, ValueError):  # a NUL in the path is a ValueError
        raise NotFound(f"there is no page {path!r:.100}; the start page is /docs/") from None
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


ROUTES: Sequence[Route] = (("GET", "/docs", start), ("GET", "/docs/{path:path}", page))
