"""A task's webhook deliveries: list them, and replay one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hidream.errors import NotFound
from hidream.server.responses import success, timestamp
from hidream.server.results import unknown
from hidream.server.service import Route, SubmitKey, Version, ViewKey, service_of
from hidream.store import history, outbox
from hidream.store.outbox import Delivery, DeliveryState


async def listing(request: Request, prediction_id: str, api: Version, key: ViewKey) -> Response:
    """GET /api/{v2,v3}/predictions/{id}/webhooks: the deliveries of a task, oldest first."""
    service = service_of(request)
    async with service.read_limiter.slot(key.id, request):
        if await history.get(service.database, prediction_id, key.id) is None:
            raise unknown(prediction_id)
        found = await outbox.list_deliveries(service.database, prediction_id, key.id)
    return success([_data(delivery) for delivery in found])


async def replay(request: Request, prediction_id: str, delivery_id: str, api: Version, key: SubmitKey) -> Response:
    """POST /api/{v2,v3}/predictions/{id}/webhooks/{delivery_id}/replay: deliver it again, under the same id."""
    service = service_of(request)
    async with service.read_limiter.slot(key.id):
        if await history.get(service.database, prediction_id, key.id) is None:
            raise unknown(prediction_id)
        replayed = await outbox.replay(service.database, delivery_id, prediction_id, key.id)
    if not replayed:
        raise NotFound(f"there is no delivery {delivery_id!r:.100} of this prediction")
    return success({"id": delivery_id, "state": DeliveryState.WAITING})


def _data(delivery: Delivery) -> dict[str, Any]:
    """Describe a delivery; `next_attempt_at` is null if there will be no further attempt."""
    waiting = delivery.state is DeliveryState.WAITING
    return {
        "id": delivery.id,
        "url": delivery.url,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "status_code": delivery.status_code,
        "error": delivery.error,
        "created_at": timestamp(delivery.created_ms),
        "next_attempt_at": timestamp(delivery.due_ms) if waiting else None,
        "finished_at": None if delivery.finished_ms is None else timestamp(delivery.finished_ms),
    }


ROUTES: Sequence[Route] = (
    ("GET", "/api/{api}/predictions/{prediction_id}/webhooks", listing),
    ("POST", "/api/{api}/predictions/{prediction_id}/webhooks/{delivery_id}/replay", replay),
)
