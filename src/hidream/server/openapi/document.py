"""The whole OpenAPI document, with the routes of an account and those that need no key."""

from __future__ import annotations

from collections.abc import Mapping

from hidream import __version__
from hidream.file_names import PATTERN
from hidream.server.openapi import openai, tasks
from hidream.server.openapi.elements import (
    INTEGER,
    NUMBER,
    TEXT,
    VERSION,
    Json,
    content,
    envelope,
    failures,
    object_of,
    operation,
    parameter,
    without_content,
)
from hidream.store.webhook_secrets import OVERLAP_MAX_HOURS
from hidream.types import FORMATS, READABLE, Variant

_MEDIA_TYPES = [file.media_type for file in FORMATS.values()]


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
        "paths": tasks.submissions(models)
        | tasks.predictions()
        | _account(upload_max_bytes)
        | openai.routes()
        | _open(),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Prediction": tasks.prediction(), "Error": _error(), "OpenAIError": openai.error()},
        },
    }


def _account(upload_max_bytes: int) -> Json:
    model = object_of(model_id=TEXT, name=TEXT, description=TEXT, type=TEXT, base_price=NUMBER, api_schema={})
    asked = object_of(model_id=TEXT, inputs={"type": ["object", "null"]}, optional=("inputs",))
    two = ("secret_until", "next_secret")
    secrets = envelope(object_of(secret=TEXT, **dict.fromkeys(two, TEXT), optional=two))
    hours = {"type": "integer", "minimum": 0, "maximum": OVERLAP_MAX_HOURS}
    overlap = object_of(overlap_hours=hours, optional=("overlap_hours",))
    unit = envelope(object_of(model_id=TEXT, unit_price=NUMBER, currency=TEXT))
    price = envelope(object_of(model_id=TEXT, price=NUMBER, discounted_price=NUMBER, currency=TEXT))
    size = {"type": "integer", "minimum": 1, "maximum": upload_max_bytes}
    announced = object_of(filename=_text(), size=size, content_type=_types(), optional=("content_type",))
    ticket = object_of(upload=object_of(method=TEXT, url=TEXT, headers={"type": "object"}), download_url=TEXT)
    taken = envelope(object_of(type=TEXT, download_url=TEXT, filename=TEXT, size=INTEGER))
    taken_in = (400, 408, 413, 429, 507)
    form = operation("Upload an image.", taken, [VERSION], errors=taken_in)
    form["requestBody"] = {
        "required": True,
        "content": {"multipart/form-data": {"schema": object_of(file={"type": "string", "format": "binary"})}},
    }
    routes = {
        "balance": {"get": operation("Read the balance.", envelope(object_of(balance=NUMBER)), [VERSION])},
        "models": {"get": operation("List models.", envelope({"type": "array", "items": model}), [VERSION])},
        "model/pricing": {"post": operation("Read the price of a model.", unit, [VERSION], asked, (400, 408, 413))},
        "model/price": {"post": operation("Read the price of a request.", price, [VERSION], asked, (400, 408, 413))},
        "webhook/secret": {"get": operation("Read the webhook secret.", secrets, [VERSION])},
        "webhook/secret/rotate": {
            "post": operation("Rotate the webhook secret.", secrets, [VERSION], overlap, (400, 408, 409, 413))
        },
        "webhook/secret/retire": {"post": operation("Retire the old webhook secret.", secrets, [VERSION])},
        "media/upload/binary": {"post": form},
        "media/uploads": {
            "post": operation(
                "Create a URL for an upload.", envelope(ticket), [VERSION], announced, (400, 408, 413, 429, 507)
            )
        },
    }
    return {f"/api/{{api}}/{path}": operations for path, operations in routes.items()}


def _open() -> Json:
    """The routes that need no key."""
    name = [parameter("name", "path", {"type": "string", "pattern": f"^{PATTERN}$"})]
    file = operation("Download a file.", None, name, errors=(404, 416, 503))
    images = {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in _MEDIA_TYPES}
    for status, words in (("200", "The file."), ("206", "A part of the file.")):
        file["responses"][status] = {"description": words, "content": images}
    file["responses"]["304"] = {"description": "The file has not changed since the client read it."}
    head = {**file, "responses": {status: without_content(each) for status, each in file["responses"].items()}}
    put = operation("Upload the announced file.", envelope(object_of(filename=TEXT, size=INTEGER)), name)
    put["responses"] |= failures((400, 404, 408, 413, 429, 503, 507), "Error")
    put["requestBody"] = {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
    metrics = operation("Read the metrics for Prometheus.", None)
    metrics["responses"]["200"] = content("The metrics.", "text/plain", TEXT)
    state = envelope({"type": "object", "required": ["status"]})
    model = [parameter("model", "query", TEXT)]
    routes: Json = {
        "/outputs/{name}": {"get": file, "head": head},
        "/uploads/{name}": {"get": file, "head": head, "put": put},
        "/healthz": {"get": operation("Check that the process responds.", state)},
        "/readyz": {"get": operation("Check that tasks are accepted and run.", state, model, errors=(400,))},
        "/metrics": {"get": metrics},
        "/openapi.json": {"get": operation("Read this document.", {"type": "object"})},
        **_site(),
    }
    return {
        path: {method: {**operation, "security": []} for method, operation in operations.items()}
        for path, operations in routes.items()
    }


def _site() -> Json:
    path = parameter("path", "path", {"type": "string", "pattern": "^([A-Za-z0-9_][A-Za-z0-9_./-]{0,100})?$"})
    start, page = operation("Go to the documents.", None), operation("Read a page of the documents.", None, [path])
    start["responses"]["307"] = {"description": "The start page, `/docs/`."}
    page["responses"]["200"] = {"description": "A page, its Markdown, or a file that it uses."}
    page["responses"]["304"] = {"description": "The file has not changed since the client read it."}
    return {"/docs": {"get": start}, "/docs/{path}": {"get": page}}


def _text(shortest: int = 0, longest: int | None = None) -> Json:
    return {"type": "string", "minLength": shortest} | ({} if longest is None else {"maxLength": longest})


def _types() -> Json:
    return {"enum": [*(FORMATS[each].media_type for each in READABLE), "application/octet-stream", "", None]}


def _error() -> Json:
    return object_of(code=INTEGER, message=TEXT, data={"type": "null"}, error=TEXT)
