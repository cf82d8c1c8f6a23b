"""The OpenAPI document: every route with its requests and responses, for client generators and fuzzers.

It is written by hand, because the routes read their bodies themselves. `tests/server/test_openapi.py` compares it with
the registered routes and with real responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hidream import __version__
from hidream.file_names import PATTERN
from hidream.server import openai_parameters, schema
from hidream.server.parameters import V2, V3
from hidream.store.outbox import DeliveryState
from hidream.store.webhook_secrets import OVERLAP_MAX_HOURS
from hidream.types import FORMATS, READABLE, Status, Variant

Json = dict[str, Any]

_MEDIA_TYPES = [file.media_type for file in FORMATS.values()]

_TEXT: Json = {"type": "string"}
_INTEGER: Json = {"type": "integer"}
_NUMBER: Json = {"type": "number"}
_NULLABLE_TEXT: Json = {"type": ["string", "null"]}

_REASONS = {
    400: "The request is not valid; the message names the parameter, its value and what is accepted.",
    401: "The API key is missing, unknown or revoked.",
    403: "The API key lacks the scope, or its limits never allow such a task.",
    404: "The path, version, model, prediction or file does not exist, or it belongs to another key.",
    408: "The rest of the body did not arrive in time.",
    409: "The Idempotency-Key was used with another request, or the webhook secret is already being rotated.",
    413: "The body is too large.",
    416: "The range lies outside the file.",
    422: "A query parameter is not valid.",
    429: "A limit is reached; Retry-After gives the seconds to wait.",
    500: "The task failed.",
    503: "The database or the object store is unavailable; try again.",
    504: "The task took too long and was cancelled.",
    507: "The server has too little free disk space to accept anything; Retry-After gives the seconds to wait.",
}


def document(base_url: str, models: Mapping[str, Variant], upload_max_bytes: int) -> Json:
    """Describe the API of an installation that serves these models."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hidream",
            "version": __version__,
            "description": "HiDream-I1 behind a WaveSpeed-compatible API and OpenAI's image routes.",
        },
        "servers": [{"url": base_url}],
        "security": [{"key": []}],
        "paths": _submissions(models) | _predictions() | _account(upload_max_bytes) | _openai() | _open(),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Prediction": _prediction(), "Error": _error(), "OpenAIError": _openai_error()},
        },
    }


def _submissions(models: Mapping[str, Variant]) -> Json:
    again = _parameter("Idempotency-Key", "header", {"type": "string", "pattern": "^[ -~]{1,255}$"})
    webhook = _parameter("webhook", "query", _TEXT)
    return {
        f"/api/{api.name}/{name}": {
            "post": _operation(
                "Submit a task.",
                _envelope(_reference("Prediction")),
                parameters=[again, webhook],
                body=_with_nulls(schema.submission(api, variant)),
                errors=(400, 408, 409, 413, 429, 507),
            )
        }
        for api in (V2, V3)
        for name, variant in models.items()
    }


def _predictions() -> Json:
    """The routes of a task, for both versions."""
    prediction, id_ = _envelope(_reference("Prediction")), _id("prediction_id")
    wait = _parameter("wait_s", "query", {"type": "number", "minimum": 0, "maximum": 60})
    result = _operation("Read a task.", prediction, parameters=[_VERSION, id_, wait], errors=(422,))
    ended = _envelope(_object(id=_TEXT, status={"enum": [Status.CANCELLED, Status.DELETED]}))
    count = _envelope(_object(deleted_count=_INTEGER))
    replayed = _envelope(_object(id=_TEXT, state={"enum": list(DeliveryState)}))
    deliveries = _envelope({"type": "array", "items": _delivery()})
    ids = _object(ids={"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 500})
    root, one = "/api/{api}/predictions", "/api/{api}/predictions/{prediction_id}"
    events = _operation(
        "Follow a task.", None, parameters=[_VERSION, id_, _parameter("Last-Event-ID", "header", _TEXT)]
    )
    events["responses"] |= {
        "200": _content("Server-sent events until the task ends.", "text/event-stream", {}),
        "204": {"description": "The client already knows that the task has ended."},
    }
    return {
        root: {"post": _operation("List tasks.", _envelope(_page()), [_VERSION], schema.listing(), (400, 408, 413))},
        f"{root}/delete": {"post": _operation("Cancel or delete tasks.", count, [_VERSION], ids, (400, 408, 413))},
        one: {"get": result, "delete": _operation("Cancel or delete a task.", ended, [_VERSION, id_])},
        f"{one}/result": {"get": result},
        f"{one}/events": {"get": events},
        f"{one}/webhooks": {"get": _operation("List the webhook deliveries of a task.", deliveries, [_VERSION, id_])},
        f"{one}/webhooks/{{delivery_id}}/replay": {
            "post": _operation("Deliver a webhook again.", replayed, [_VERSION, id_, _id("delivery_id")])
        },
    }


def _account(upload_max_bytes: int) -> Json:
    model = _object(model_id=_TEXT, name=_TEXT, description=_TEXT, type=_TEXT, base_price=_NUMBER, api_schema={})
    asked = _object(model_id=_TEXT, inputs={"type": ["object", "null"]}, optional=("inputs",))
    two = ("secret_until", "next_secret")
    secrets = _envelope(_object(secret=_TEXT, **dict.fromkeys(two, _TEXT), optional=two))
    hours = {"type": "integer", "minimum": 0, "maximum": OVERLAP_MAX_HOURS}
    overlap = _object(overlap_hours=hours, optional=("overlap_hours",))
    unit = _envelope(_object(model_id=_TEXT, unit_price=_NUMBER, currency=_TEXT))
    price = _envelope(_object(model_id=_TEXT, price=_NUMBER, discounted_price=_NUMBER, currency=_TEXT))
    size = {"type": "integer", "minimum": 1, "maximum": upload_max_bytes}
    announced = _object(filename=_text(), size=size, content_type=_types(), optional=("content_type",))
    ticket = _object(upload=_object(method=_TEXT, url=_TEXT, headers={"type": "object"}), download_url=_TEXT)
    taken = _envelope(_object(type=_TEXT, download_url=_TEXT, filename=_TEXT, size=_INTEGER))
    taken_in = (400, 408, 413, 429, 507)
    form = _operation("Upload an image.", taken, [_VERSION], errors=taken_in)
    form["requestBody"] = {
        "required": True,
        "content": {"multipart/form-data": {"schema": _object(file={"type": "string", "format": "binary"})}},
    }
    routes = {
        "balance": {"get": _operation("Read the balance.", _envelope(_object(balance=_NUMBER)), [_VERSION])},
        "models": {"get": _operation("List models.", _envelope({"type": "array", "items": model}), [_VERSION])},
        "model/pricing": {"post": _operation("Read the price of a model.", unit, [_VERSION], asked, (400, 408, 413))},
        "model/price": {"post": _operation("Read the price of a request.", price, [_VERSION], asked, (400, 408, 413))},
        "webhook/secret": {"get": _operation("Read the webhook secret.", secrets, [_VERSION])},
        "webhook/secret/rotate": {
            "post": _operation("Rotate the webhook secret.", secrets, [_VERSION], overlap, (400, 408, 409, 413))
        },
        "webhook/secret/retire": {"post": _operation("Retire the old webhook secret.", secrets, [_VERSION])},
        "media/upload/binary": {"post": form},
        "media/uploads": {
            "post": _operation(
                "Create a URL for an upload.", _envelope(ticket), [_VERSION], announced, (400, 408, 413, 429, 507)
            )
        },
    }
    return {f"/api/{{api}}/{path}": operations for path, operations in routes.items()}


def _openai() -> Json:
    body = _with_nulls({"type": "object", "properties": _openai_properties(), "required": ["prompt"]})
    image = {"type": "object", "properties": {"url": _TEXT, "b64_json": _TEXT}, "minProperties": 1}
    data, warnings = ({"type": "array", "items": each} for each in (image, _TEXT))
    images = _object(created=_INTEGER, data=data, warnings=warnings, optional=("warnings",))
    model = _object(id=_TEXT, object=_TEXT, created=_INTEGER, owned_by=_TEXT)
    listed = _object(object=_TEXT, data={"type": "array", "items": model})
    name = _parameter("name", "path", {"type": "string", "pattern": "^([a-z0-9-]{1,60}/)?[a-z0-9-]{1,60}$"})
    errors = (400, 408, 409, 413, 429, 500, 504, 507)
    return {
        "/v1/images/generations": {
            "post": _operation("Generate images.", images, body=body, errors=errors, form="OpenAIError")
        },
        "/v1/models": {"get": _operation("List models.", listed, form="OpenAIError")},
        "/v1/models/{name}": {"get": _operation("Read a model.", model, [name], form="OpenAIError")},
    }


def _openai_properties() -> Json:
    """OpenAI's parameters and those of v3."""
    numbers = {name: openai_parameters.FORM.kind(ours).schema() for name, ours in openai_parameters.ALIASES.items()}
    ours = schema.submission(openai_parameters.FORM, Variant.FULL)["properties"]
    nothing = {name: {"enum": [*values]} for name, (values, _) in openai_parameters.UNSERVED.items() if values}
    known = {name: each for name, each in ours.items() if name not in openai_parameters.UNSERVED}
    return {
        **known,
        **numbers,
        **nothing,
        **dict.fromkeys(openai_parameters.IGNORED, _TEXT),
        "model": _TEXT,
        "size": {**ours["size"], "pattern": r"^([0-9]{1,6}[*xX][0-9]{1,6}|auto)$"},
        "response_format": {"enum": ["url", "b64_json"]},
    }


def _open() -> Json:
    """The routes that need no key."""
    name = [_parameter("name", "path", {"type": "string", "pattern": f"^{PATTERN}$"})]
    file = _operation("Download a file.", None, name, errors=(404, 416, 503))
    images = {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in _MEDIA_TYPES}
    for status, words in (("200", "The file."), ("206", "A part of the file.")):
        file["responses"][status] = {"description": words, "content": images}
    file["responses"]["304"] = {"description": "The file has not changed since the client read it."}
    head = {**file, "responses": {status: _without_content(each) for status, each in file["responses"].items()}}
    put = _operation("Upload the announced file.", _envelope(_object(filename=_TEXT, size=_INTEGER)), name)
    put["responses"] |= _failures((400, 404, 408, 413, 429, 503, 507), "Error")
    put["requestBody"] = {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
    metrics = _operation("Read the metrics for Prometheus.", None)
    metrics["responses"]["200"] = _content("The metrics.", "text/plain", _TEXT)
    state = _envelope({"type": "object", "required": ["status"]})
    model = [_parameter("model", "query", _TEXT)]
    routes: Json = {
        "/outputs/{name}": {"get": file, "head": head},
        "/uploads/{name}": {"get": file, "head": head, "put": put},
        "/healthz": {"get": _operation("Check that the process responds.", state)},
        "/readyz": {"get": _operation("Check that tasks are accepted and run.", state, model, errors=(400,))},
        "/metrics": {"get": metrics},
        "/openapi.json": {"get": _operation("Read this document.", {"type": "object"})},
    }
    return {
        path: {method: {**operation, "security": []} for method, operation in operations.items()}
        for path, operations in routes.items()
    }


def _operation(
    summary: str,
    answer: Json | None,
    parameters: list[Json] | None = None,
    body: Json | None = None,
    errors: tuple[int, ...] = (),
    form: str = "Error",
) -> Json:
    """Describe a method of a path. Errors that every route can return are added."""
    operation: Json = {"summary": summary, "responses": _failures((401, 403, 404, 429, 503, *errors), form)}
    if answer is not None:
        operation["responses"]["200"] = _content("Success.", "application/json", answer)
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _failures(statuses: tuple[int, ...], form: str) -> Json:
    return {str(status): _content(_REASONS[status], "application/json", _reference(form)) for status in statuses}


def _content(description: str, media_type: str, content: Json) -> Json:
    return {"description": description, "content": {media_type: {"schema": content}}}


def _without_content(response: Json) -> Json:
    return {"description": response["description"]}


def _parameter(name: str, where: str, content: Json) -> Json:
    return {"name": name, "in": where, "required": where == "path", "schema": content}


def _id(name: str) -> Json:
    return _parameter(name, "path", {"type": "string", "pattern": "^[0-9a-f]{32}$"})


_VERSION = _parameter("api", "path", {"enum": [V2.name, V3.name]})


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(*, optional: tuple[str, ...] = (), **properties: Json) -> Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _envelope(data: Json) -> Json:
    return _object(code={"const": 200}, message={"const": "success"}, data=data)


def _text(shortest: int = 0, longest: int | None = None) -> Json:
    return {"type": "string", "minLength": shortest} | ({} if longest is None else {"maxLength": longest})


def _types() -> Json:
    return {"enum": [*(FORMATS[each].media_type for each in READABLE), "application/octet-stream", "", None]}


def _with_nulls(described: Json) -> Json:
    """Accept null for an absent parameter, as the routes do."""
    properties = {
        name: each if name in described["required"] else {"anyOf": [each, {"type": "null"}]}
        for name, each in described["properties"].items()
    }
    return described | {"properties": properties}


def _page() -> Json:
    items = {"type": "array", "items": _reference("Prediction")}
    warnings = {"type": "array", "items": _TEXT}
    return _object(
        page=_INTEGER, page_size=_INTEGER, total=_INTEGER, items=items, warnings=warnings, optional=("warnings",)
    )


def _prediction() -> Json:
    texts = {"type": "array", "items": _TEXT}
    queue = _object(
        position={"type": "integer", "minimum": 1},
        estimated_seconds={"type": ["number", "null"]},
        workers={"type": "integer", "minimum": 0},
        reason=_NULLABLE_TEXT,
    )
    return _object(
        id={"type": "string", "pattern": "^[0-9a-f]{32}$"},
        model=_TEXT,
        outputs=texts,
        urls=_object(get=_TEXT),
        has_nsfw_contents={"type": "array", "items": {"type": "boolean"}},
        status={"enum": schema.SHOWN},
        created_at={"type": "string", "format": "date-time"},
        error=_TEXT,
        executionTime=_INTEGER,
        timings=_object(inference=_INTEGER),
        seed=_INTEGER,
        version=_TEXT,
        code=_INTEGER,
        warnings=texts,
        queue=queue,
        input={"type": "object"},
        optional=("code", "warnings", "queue", "input"),
    )


def _delivery() -> Json:
    return _object(
        id=_TEXT,
        url=_TEXT,
        state={"enum": list(DeliveryState)},
        attempts=_INTEGER,
        status_code={"type": ["integer", "null"]},
        error=_TEXT,
        created_at=_TEXT,
        next_attempt_at=_NULLABLE_TEXT,
        finished_at=_NULLABLE_TEXT,
    )


def _error() -> Json:
    return _object(code=_INTEGER, message=_TEXT, data={"type": "null"}, error=_TEXT)


def _openai_error() -> Json:
    return _object(error=_object(message=_TEXT, type=_TEXT, param=_NULLABLE_TEXT, code=_NULLABLE_TEXT))
