"""Whether this process answers, whether what is submitted now will be drawn, and the figures of both."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from hidream.errors import NotFound, StoreUnavailable
from hidream.server.answers import failure, success
from hidream.server.metrics import CONTENT_TYPE
from hidream.server.service import Route, key_of, service_of
from hidream.store import workers
from hidream.store.keys import Scope

_admin = key_of(Scope.ADMIN)


async def healthz() -> Response:
    """GET /healthz: this process answers."""
    return success({"status": "ok"})


async def readyz(request: Request) -> Response:
    """GET /readyz: what is submitted now will be drawn; else a 503 that says why not."""
    service = service_of(request)
    within_s = service.settings.worker.lease_s
    if service.database.changes.stopped:
        return failure(503, "this process is stopping")
    try:
        ready = await workers.ready(service.database, within_s)
    except StoreUnavailable as error:
        return failure(503, error.message)
    if not ready:
        return failure(503, f"no worker with a loaded model was seen in the last {within_s:g} seconds")
    models = sorted({model for worker in ready for model in worker.models})
    versions = sorted({worker.version for worker in ready})
    return success({"status": "ready", "workers": len(ready), "models": models, "versions": versions})


async def metrics(request: Request) -> Response:
    """GET /metrics: figures for Prometheus, for whom the operator wants."""
    service = service_of(request)
    if service.settings.server.metrics == "off":
        raise NotFound("the operator has switched /metrics off (`[server] metrics`)")
    if service.settings.server.metrics == "admin":
        await _admin(request)
    return Response(await service.metrics.text(), media_type=CONTENT_TYPE)


ROUTES: Sequence[Route] = (
    ("GET", "/healthz", healthz),
    ("GET", "/readyz", readyz),
    ("GET", "/metrics", metrics),
)
