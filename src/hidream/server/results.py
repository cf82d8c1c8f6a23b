"""A task's state for whoever asks: waiting for its end, and describing it with its place in the queue."""

from __future__ import annotations

import contextlib
from typing import Any

from starlette.requests import Request

from hidream.errors import DatabaseUnavailable, NotFound
from hidream.server.answers import prediction_data, queue_data
from hidream.server.client_watch import watch_client
from hidream.server.parameters import Api
from hidream.server.service import Service, secret_of
from hidream.store.prediction import Prediction
from hidream.types import Status


async def awaited(
    service: Service, request: Request, prediction_id: str, key_id: str, timeout_s: float
) -> Prediction | None:
    """Wait for a task's end as long as somebody may have the answer. The request's body was read, if it has one.

    Raises ClientDisconnect when the client hangs up meanwhile, Unauthorized when its key is revoked.
    """
    with service.revocations.watch(secret_of(request)) as revoked:
        async with watch_client(request, revoked) as gone:
            return await service.completion_waiter.wait(prediction_id, key_id, timeout_s, gone)


async def described(
    service: Service, prediction: Prediction, api: Api, url: str, *, if_served: bool = True
) -> dict[str, Any]:
    """Describe a prediction to whoever asks for it; one that waits also with its place in the queue.

    Unless `if_served`, the place is looked up only where no worker serves the model: a submission need not pay for it.
    A database that goes away between its commit and its answer must not make that an error either: the task is in.
    """
    data = await prediction_data(prediction, api, url, service.outputs)
    if prediction.status is Status.CREATED:
        with contextlib.suppress(DatabaseUnavailable):
            workers = await service.worker_counts.workers(prediction.model)
            if if_served or not workers:
                place = await service.queue_status.position(prediction)
                data["queue"] = queue_data(place, prediction.model, workers, service.worker_counts.seen_s)
    return data


def unknown(prediction_id: str) -> NotFound:
    """Make the error of an id that is not there, or another key's."""
    return NotFound(f"there is no prediction {prediction_id!r:.100} of this API key")
