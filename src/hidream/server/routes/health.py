"""Health checks and metrics: whether this process is alive, and whether submitted tasks will be generated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.requests import Request
from starlette.responses import Response

from hidream.errors import DatabaseUnavailable, InvalidInput, NotFound
from hidream.server import model_registry
from hidream.server.metrics import CONTENT_TYPE
from hidream.server.responses import failure, no_worker, success
from hidream.server.service import Route, key_of, service_of
from hidream.store import workers
from hidream.store.keys import Scope
from hidream.store.workers import Worker

_admin = key_of(Scope.ADMIN)


async def healthz() -> Response:
    """GET /healthz: this process is alive."""
    return success({"status": "ok"})


async def readyz(request: Request) -> Response:
    """GET /readyz: 200 if tasks are stored and generated, for at least one model, or for each `model` that is named.

    Otherwise a 503 with the reason. Without a `model`, one model without workers must not make a proxy stop traffic to
    the others.
    """
    service = service_of(request)
    within_s = service.worker_counts.seen_s
    if strange := request.query_params.keys() - {"model"}:  # a probe would rely on an ignored parameter
        raise InvalidInput(f"{min(strange)!r:.60} is not a parameter of /readyz; accepted: model")
    named = [model_registry.find(service.models, name) for name in request.query_params.getlist("model")]
    if service.database.changes.stopped:
        return failure(503, "this process is stopping")
    if shortage := await service.disk_space.shortage():
        return failure(503, f"no new tasks are accepted: {shortage}")
    try:
        await service.database.check()
        ready = await workers.ready(service.database, within_s)
    except DatabaseUnavailable as error:
        return failure(503, error.message)
    serving = workers.count_by_model(ready)
    missing = [model for model in named or service.models if not serving[model]]
    if missing and (named or len(missing) == len(service.models)):
        others = f"; those that were seen serve {', '.join(sorted(serving))}" if ready else ""
        return failure(503, no_worker(missing, within_s) + others)
    return success(_state(service.models, ready))


def _state(offered: Iterable[str], ready: Sequence[Worker]) -> dict[str, object]:
    serving = workers.count_by_model(ready)
    by_model = {model: {"ready": serving[model] > 0, "workers": serving[model]} for model in offered}
    return {
        "status": "ready" if all(each["ready"] for each in by_model.values()) else "degraded",
        "workers": len(ready),
        "models": sorted(serving),
        "versions": sorted({worker.version for worker in ready}),
        "by_model": by_model,
    }


async def metrics(request: Request) -> Response:
    """GET /metrics: metrics for Prometheus; `[server] metrics` says who may read them."""
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
