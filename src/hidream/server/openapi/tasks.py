"""The routes of tasks in the OpenAPI document: submit, read, follow, list, cancel and delete."""

from __future__ import annotations

from collections.abc import Mapping

from hidream.server import schema
from hidream.server.openapi.elements import (
    INTEGER,
    NULLABLE_TEXT,
    TEXT,
    VERSION,
    Json,
    content,
    envelope,
    id_of,
    object_of,
    operation,
    parameter,
    reference,
    with_nulls,
)
from hidream.server.parameters import V2, V3
from hidream.store.outbox import DeliveryState
from hidream.types import Status, Variant


def submissions(models: Mapping[str, Variant]) -> Json:
    """The submit route of each model, in both versions of the API."""
    again = parameter("Idempotency-Key", "header", {"type": "string", "pattern": "^[ -~]{1,255}$"})
    webhook = parameter("webhook", "query", TEXT)
    return {
        f"/api/{api.name}/{name}": {
            "post": operation(
                "Submit a task.",
                envelope(reference("Prediction")),
                parameters=[again, webhook],
                body=with_nulls(schema.submission(api, variant)),
                errors=(400, 408, 409, 413, 429, 507),
            )
        }
        for api in (V2, V3)
        for name, variant in models.items()
    }


def predictions() -> Json:
    """The routes of a task, for both versions."""
    described, id_ = envelope(reference("Prediction")), id_of("prediction_id")
    wait = parameter("wait_s", "query", {"type": "number", "minimum": 0, "maximum": 60})
    result = operation("Read a task.", described, parameters=[VERSION, id_, wait], errors=(422,))
    ended = envelope(object_of(id=TEXT, status={"enum": [Status.CANCELLED, Status.DELETED]}))
    count = envelope(object_of(deleted_count=INTEGER))
    replayed = envelope(object_of(id=TEXT, state={"enum": list(DeliveryState)}))
    deliveries = envelope({"type": "array", "items": _delivery()})
    ids = object_of(ids={"type": "array", "items": TEXT, "minItems": 1, "maxItems": 500})
    root, one = "/api/{api}/predictions", "/api/{api}/predictions/{prediction_id}"
    events = operation("Follow a task.", None, parameters=[VERSION, id_, parameter("Last-Event-ID", "header", TEXT)])
    events["responses"] |= {
        "200": content("Server-sent events until the task ends.", "text/event-stream", {}),
        "204": {"description": "The client already knows that the task has ended."},
    }
    return {
        root: {"post": operation("List tasks.", envelope(_page()), [VERSION], schema.listing(), (400, 408, 413))},
        f"{root}/delete": {"post": operation("Cancel or delete tasks.", count, [VERSION], ids, (400, 408, 413))},
        one: {"get": result, "delete": operation("Cancel or delete a task.", ended, [VERSION, id_])},
        f"{one}/result": {"get": result},
        f"{one}/cancel": {"post": operation("Cancel a task that is not finished.", described, [VERSION, id_])},
        f"{one}/events": {"get": events},
        f"{one}/webhooks": {"get": operation("List the webhook deliveries of a task.", deliveries, [VERSION, id_])},
        f"{one}/webhooks/{{delivery_id}}/replay": {
            "post": operation("Deliver a webhook again.", replayed, [VERSION, id_, id_of("delivery_id")])
        },
    }


def _page() -> Json:
    items = {"type": "array", "items": reference("Prediction")}
    warnings = {"type": "array", "items": TEXT}
    return object_of(
        page=INTEGER, page_size=INTEGER, total=INTEGER, items=items, warnings=warnings, optional=("warnings",)
    )


def prediction() -> Json:
    """A task, as every route describes it."""
    texts = {"type": "array", "items": TEXT}
    queue = object_of(
        position={"type": "integer", "minimum": 1},
        estimated_seconds={"type": ["number", "null"]},
        workers={"type": "integer", "minimum": 0},
        reason=NULLABLE_TEXT,
    )
    return object_of(
        id={"type": "string", "pattern": "^[0-9a-f]{32}$"},
        model=TEXT,
        outputs=texts,
        urls=object_of(get=TEXT),
        has_nsfw_contents={"type": "array", "items": {"type": "boolean"}},
        status={"enum": schema.SHOWN},
        created_at={"type": "string", "format": "date-time"},
        error=TEXT,
        executionTime=INTEGER,
        timings=object_of(inference=INTEGER),
        seed=INTEGER,
        version=TEXT,
        code=INTEGER,
        warnings=texts,
        queue=queue,
        input={"type": "object"},
        optional=("code", "warnings", "queue", "input"),
    )


def _delivery() -> Json:
    return object_of(
        id=TEXT,
        url=TEXT,
        state={"enum": list(DeliveryState)},
        attempts=INTEGER,
        status_code={"type": ["integer", "null"]},
        error=TEXT,
        created_at=TEXT,
        next_attempt_at=NULLABLE_TEXT,
        finished_at=NULLABLE_TEXT,
    )
