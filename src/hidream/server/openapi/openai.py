"""OpenAI's routes in the OpenAPI document."""

from __future__ import annotations

from hidream.server import openai_parameters, schema
from hidream.server.openapi.elements import (
    INTEGER,
    NULLABLE_TEXT,
    TEXT,
    Json,
    object_of,
    operation,
    parameter,
    with_nulls,
)
from hidream.types import Variant

_ERRORS = (400, 408, 409, 413, 429, 500, 504, 507)


def routes() -> Json:
    """The image routes and the models below `/v1`."""
    texts = {"type": "array", "items": TEXT}
    image = {"type": "object", "properties": {"url": TEXT, "b64_json": TEXT}, "minProperties": 1}
    data = {"type": "array", "items": image}
    images = object_of(
        created=INTEGER,
        background=TEXT,
        output_format=TEXT,
        quality=TEXT,
        size=TEXT,
        data=data,
        usage=_usage(),
        warnings=texts,
        optional=("warnings",),
    )
    model = object_of(id=TEXT, object=TEXT, created=INTEGER, owned_by=TEXT, root=TEXT, optional=("root",))
    listed = object_of(object=TEXT, data={"type": "array", "items": model})
    name = parameter("name", "path", {"type": "string", "pattern": "^([\\w.:-]{1,60}/)?[\\w.:-]{1,60}$"})
    generate, edit = (
        operation(summary, images, body=with_nulls(_body()), errors=_ERRORS, form="OpenAIError")
        for summary in ("Generate images.", "Generate images from an image.")
    )
    for each in (generate, edit):
        each["responses"]["200"]["content"]["text/event-stream"] = {"schema": {}}
    edit["requestBody"]["content"]["multipart/form-data"] = {"schema": _form()}
    return {
        openai_parameters.GENERATIONS: {"post": generate},
        openai_parameters.EDITS: {"post": edit},
        "/v1/models": {"get": operation("List models.", listed, form="OpenAIError")},
        "/v1/models/{name}": {"get": operation("Read a model.", model, [name], form="OpenAIError")},
    }


def _body() -> Json:
    """OpenAI's parameters and those of v3."""
    numbers = {name: openai_parameters.FORM.kind(ours).schema() for name, ours in openai_parameters.ALIASES.items()}
    ours = schema.submission(openai_parameters.FORM, Variant.FULL)["properties"]
    nothing = {name: {"enum": [*values]} for name, (values, _) in openai_parameters.UNSERVED.items() if values}
    known = {name: each for name, each in ours.items() if name not in openai_parameters.UNSERVED}
    source = {"anyOf": [TEXT, object_of(image_url=TEXT)]}
    sources = {"anyOf": [source, {"type": "array", "items": source, "maxItems": 1}]}
    properties = {
        **known,
        **numbers,
        **nothing,
        **{name: kind.schema() for name, kind in openai_parameters.STREAMED.items()},
        "model": TEXT,
        "size": {**ours["size"], "pattern": r"^([0-9]{1,6}[*xX][0-9]{1,6}|auto)$"},
        "response_format": {"enum": ["url", "b64_json"]},
        "quality": {"enum": [*openai_parameters.QUALITIES]},
        "image": sources,
        "images": sources,
        "mask": source,
    }
    return {"type": "object", "properties": properties, "required": ["prompt"]}


def _form() -> Json:
    """The form of an edit: files, and the other parameters as texts."""
    file = {"type": "string", "format": "binary"}
    properties = dict.fromkeys(_body()["properties"], TEXT) | dict.fromkeys(openai_parameters.FILES, file)
    required = [{"required": [field]} for field, name in openai_parameters.FILES.items() if name == "image"]
    return {"type": "object", "properties": properties, "required": ["prompt"], "anyOf": required}


def _usage() -> Json:
    details = object_of(image_tokens=INTEGER, text_tokens=INTEGER)
    return object_of(
        input_tokens=INTEGER,
        input_tokens_details=details,
        output_tokens=INTEGER,
        output_tokens_details=details,
        total_tokens=INTEGER,
    )


def error() -> Json:
    """OpenAI's form of an error."""
    return object_of(error=object_of(message=TEXT, type=TEXT, param=NULLABLE_TEXT, code=NULLABLE_TEXT))
