"""The application: which path leads to which route, and how each error is answered."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from hidream.errors import HiDreamError, QueueFull, Unauthorized
from hidream.server import routes
from hidream.server.access_log import AccessLog
from hidream.server.answers import failure
from hidream.settings import Settings
from hidream.store.database import Database
from hidream.store.endings import Endings
from hidream.types import MODELS


def create_app(settings: Settings, database: Database) -> FastAPI:
    """Build the application on an open database."""
    app = FastAPI(title="hidream", openapi_url=None, redirect_slashes=False)
    app.state.service = routes.Service(settings, database, Endings(database))

    app.add_api_route("/api/{api}/wavespeed-ai/{name:path}", routes.submit, methods=["POST"])
    app.add_api_route("/api/{api}/predictions/{prediction_id}", routes.result, methods=["GET"])
    app.add_api_route("/api/{api}/predictions/{prediction_id}/result", routes.result, methods=["GET"])
    app.add_api_route("/outputs/{name}", routes.output, methods=["GET", "HEAD"])
    app.add_api_route("/healthz", routes.healthz, methods=["GET"])
    app.add_api_route("/readyz", routes.readyz, methods=["GET"])

    app.add_exception_handler(HiDreamError, _on_hidream_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_exception)
    app.add_middleware(AccessLog)
    return app


async def _on_hidream_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HiDreamError), "registered for it"
    headers: dict[str, str] = {}
    if isinstance(error, QueueFull):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return failure(error.http_status, error.message, headers)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answer what the framework itself finds wrong."""
    assert isinstance(error, HTTPException), "registered for it"
    headers = dict(error.headers or {})
    message = error.detail
    if error.status_code == 404:
        message = f"there is no such path; pictures are asked for at POST /api/v3/{next(iter(MODELS))}"
    if error.status_code == 405:
        message = f"the method {request.method:.20} is not accepted here; accepted: {headers.get('Allow', '')}"
    return failure(error.status_code, message, headers)


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "registered for it"
    wrong = [f"{problem['loc'][-1]} is {problem['input']!r:.100}: {problem['msg']}" for problem in error.errors()]
    return failure(422, "; ".join(wrong))


async def _on_exception(_request: Request, _error: Exception) -> Response:
    """Answer what nobody has foreseen; the framework raises it again, and so it is logged."""
    return failure(500, "an error inside the server; its log says more")
