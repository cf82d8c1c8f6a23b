"""The application: it maps paths to routes and errors to responses."""

from __future__ import annotations

import functools
import inspect
import logging

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from hidream.errors import HiDreamError, Unauthorized
from hidream.server import openai_answers
from hidream.server.access_log import REQUEST_ID, AccessLog
from hidream.server.bodies.long_bodies import LongBodies
from hidream.server.limits.rates import RateLimitHeaders
from hidream.server.responses import CLIENT_CLOSED_REQUEST, failure
from hidream.server.routes import (
    account,
    deliveries,
    document,
    events,
    files,
    health,
    media,
    openai,
    site,
    tasks,
    webhook_secret,
)
from hidream.server.service import Service

SUBJECTS = (tasks, events, deliveries, webhook_secret, media, account, openai, files, health, document, site)

CORS_MAX_AGE_S = 600
"""How long a browser may cache the answer to a preflight request."""

logger = logging.getLogger(__name__)


class PlainRoute(Route):
    """A route whose function takes only the request. It bypasses FastAPI, which would cost time and add nothing."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a request, and put the route into the scope for the access log, as FastAPI's routes do."""
        match, found = super().matches(scope)
        return match, found if match is Match.NONE else {**found, "route": self}


class TrailingSlash:
    """ASGI middleware: under `/v1`, a path with a slash at its end is the same without it, as at OpenAI."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and scope["path"].startswith(openai_answers.PREFIX):
            scope["path"] = scope["path"].rstrip("/")  # in place, because the access log reads the route from it
        await self._app(scope, receive, send)


def create_app(service: Service) -> FastAPI:
    """Build the application of a service."""
    app = FastAPI(
        title="hidream",
        openapi_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # `tracing` does it
    )
    app.state.service = service
    app.router.routes.extend(_routes())
    app.add_exception_handler(HiDreamError, _on_hidream_error)
    app.add_exception_handler(ClientDisconnect, _on_client_disconnect)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_exception)
    app.add_middleware(LongBodies)
    app.add_middleware(TrailingSlash)
    app.add_middleware(RateLimitHeaders)
    _allow_origins(app, service.settings.server.cors_origins)
    app.add_middleware(AccessLog, count=service.metrics.request)  # outermost, so that each response has a request id
    return app


@functools.cache
def _routes() -> tuple[BaseRoute, ...]:
    """Build the routes, which know no service: all applications of a process share them, as FastAPI takes long."""
    router = APIRouter()
    routes = [route for subject in SUBJECTS for route in subject.ROUTES]
    with_own_head = {path for method, path, _ in routes if method == "HEAD"}
    for method, path, route in routes:
        methods = ["GET", "HEAD"] if method == "GET" and path not in with_own_head else [method]
        if list(inspect.signature(route).parameters) == ["request"]:
            router.routes.append(plain := PlainRoute(path, route))
            plain.methods = set(methods)  # Starlette would add HEAD to each GET
        else:
            router.add_api_route(path, route, methods=methods, response_model=None)
    return tuple(router.routes)


def _allow_origins(app: FastAPI, origins: str) -> None:
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin.strip() for origin in origins.split(",")],
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", REQUEST_ID],
            expose_headers=[
                "Retry-After",
                "Idempotent-Replayed",
                "RateLimit-Limit",
                "RateLimit-Remaining",
                "RateLimit-Reset",
                REQUEST_ID,
            ],
            max_age=CORS_MAX_AGE_S,
        )


async def _on_hidream_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HiDreamError), "the handler is registered for this class"
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return _error_response(request, error.http_status, error.message, headers, error.parameter)


async def _on_client_disconnect(request: Request, _error: Exception) -> Response:
    """Give the access log a status for a request whose client disconnected while it waited."""
    return _error_response(request, CLIENT_CLOSED_REQUEST, "the client closed the connection")


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answer an error that the framework itself raises."""
    assert isinstance(error, HTTPException), "the handler is registered for this class"
    headers = dict(error.headers or {})
    message = error.detail
    if error.status_code == 404 and openai_answers.is_ours(request.scope["path"]):
        message = openai_answers.NO_SUCH_PATH
    elif error.status_code == 404:
        models = request.app.state.service.models
        message = f"there is no such path; generate images with POST /api/v3/{next(iter(models))}"
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
        message = f"the method {request.method:.20} is not accepted here; accepted: {headers['Allow']}"
    return _error_response(request, error.status_code, message, headers)


def _methods(request: Request) -> set[str]:
    """List the methods of a path. Each may be a separate route, and the framework names only those of the first."""
    found: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        found |= set() if match is Match.NONE else route.methods
    return found


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "the handler is registered for this class"
    problems = [f"{problem['loc'][-1]} is {problem['input']!r:.100}: {problem['msg']}" for problem in error.errors()]
    return _error_response(request, 422, "; ".join(problems))


async def _on_exception(request: Request, error: Exception) -> Response:
    """Answer an unexpected exception. The framework raises it again, so its traceback follows the line logged here.

    The framework sends this response outside all middleware, so the request id is added here.
    """
    request_id = request.state.request_id
    logger.error("request_failed request=%s error=%s", request_id, type(error).__name__)
    message = f"an error inside the server; its log says more about the request {request_id}"
    return _error_response(request, 500, message, {REQUEST_ID: request_id})


def _error_response(
    request: Request, status: int, message: str, headers: dict[str, str] | None = None, parameter: str = ""
) -> Response:
    """Answer an error in the format of the API that the path belongs to."""
    if openai_answers.is_ours(request.scope["path"]):
        return openai_answers.failure(status, message, headers, parameter=parameter)
    return failure(status, message, headers)
