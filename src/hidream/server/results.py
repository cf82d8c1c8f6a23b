"""Results: wait for a task's end, and describe a task with its position in the queue."""

from __future__ import annotations

import contextlib
from typing import Any

from starlette.requests import Request

from hidream.errors import DatabaseUnavailable, NotFound
from hidream.server.client_watch import watch_client
from hidream.server.parameters import Api
from hidream.server.responses import prediction_data, queue_data
from hidream.server.service import Service, secret_of
from hidream.store.prediction import Prediction
from hidream.types import Status


async def awaited(
    service: Service, request: Request, prediction_id: str, key_id: str, timeout_s: float
) -> Prediction | None:
    """Wait for a task's end, for `timeout_s` at most. The request's body, if it has one, was read before.

    Raises ClientDisconnect if the client disconnects meanwhile, and Unauthorized if its key is revoked.
    """
    with service.revocations.watch(secret_of(request)) as revoked:
        async with watch_client(request, revoked) as gone:
            return await service.completion_waiter.wait(prediction_id, key_id, timeout_s, gone)


async def described(
    service: Service, prediction: Prediction, api: Api, url: str, *, if_served: bool = True
) -> dict[str, Any]:
    """Describe a prediction; for a task that waits, also with its position in the queue.

    Without `if_served`, the position is looked up only if no worker serves the model, to save submissions the query. If
    the database becomes unavailable after the commit, the position is omitted: the task is enqueued, so the response
    must not be an error.
    """
    data = await prediction_data(prediction, api, url, service.outputs)
    if prediction.status is Status.CREATED:
        with contextlib.suppress(DatabaseUnavailable):
            workers = await service.worker_counts.workers(prediction.model)
            if if_served or not workers:
                position = await service.queue_status.position(prediction)
                data["queue"] = queue_data(position, prediction.model, workers, service.worker_counts.seen_s)
    return data


def unknown(prediction_id: str) -> NotFound:
    """Make the error for an id that does not exist or belongs to another key."""
    return NotFound(f"there is no prediction {prediction_id!r:.100} of this API key")
