"""The HTTP reference as Markdown, from the OpenAPI document: one section per route, with its fields as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

INTRODUCTION = """# HTTP reference

Every route with its parameters, fields and statuses, from the OpenAPI document that a server has at `/openapi.json`.
[The HTTP API](../API.md) explains how to use them. Every route needs a key ([AUTH.md](../AUTH.md)), unless it says that
it does not.
"""


def page(document: Json) -> str:
    """Render the page of an OpenAPI 3.1 document."""
    schemas = document["components"]["schemas"]
    sections = [
        _operation(method.upper(), path, operation, schemas)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method != "head"  # the status and headers of its GET
    ]
    return "\n".join([INTRODUCTION, *sections])


def _operation(method: str, path: str, operation: Json, schemas: Json) -> str:
    lines = [f"## {method} {path}", "", operation["summary"]]
    if operation.get("security") == []:
        lines[-1] += " No key is needed."
    if parameters := operation.get("parameters"):
        rows = [[f"`{each['name']}`", each["in"], _accepted(each["schema"])] for each in parameters]
        lines += ["", *_table(["parameter", "in", "accepted"], rows)]
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        lines += ["", f"Body, `{media_type}`:", "", *_fields(content["schema"], schemas)]
    answers = []
    for status, response in sorted(operation["responses"].items()):
        content = response.get("content", {})
        answers.append([status, response["description"], ", ".join(f"`{each}`" for each in content)])
        if status == "200" and "application/json" in content:
            lines += ["", "Answer:", "", *_fields(content["application/json"]["schema"], schemas)]
    lines += ["", *_table(["status", "meaning", "content"], answers), ""]
    return "\n".join(lines)


def _fields(schema: Json, schemas: Json) -> list[str]:
    rows = [[f"`{name}`", _accepted(each), each.get("description", "")] for name, each in _flat(schema, schemas)]
    return _table(["field", "accepted", ""], rows) if rows else [_accepted(schema)]


def _flat(schema: Json, schemas: Json, prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Yield the fields of an object with their paths, such as `data.outputs`; `[]` stands for each item of an array."""
    schema = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    required = schema.get("required", ())
    for name, each in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        inner = each.get("items", {})
        plain = {"type": "object"} if "$ref" in each else each
        yield path if name in required else f"{path}?", plain
        yield from _flat(each, schemas, f"{path}.")
        yield from _flat(inner, schemas, f"{path}[].")


def _accepted(schema: Json) -> str:
    """Say in a few words what a schema accepts."""
    if alternatives := schema.get("anyOf", schema.get("oneOf")):
        words = " or ".join(_accepted(each) for each in alternatives)
    elif "enum" in schema:
        words = ", ".join(f"`{json.dumps(each)}`" for each in schema["enum"])
    elif "const" in schema:
        words = f"`{json.dumps(schema['const'])}`"
    else:
        words = _typed(schema)
    return words + (f"; default `{json.dumps(schema['default'])}`" if "default" in schema else "")


_BOUNDS = {
    "format": "",
    "pattern": "pattern ",
    "minimum": "at least ",
    "maximum": "at most ",
    "minLength": "characters at least ",
    "maxLength": "characters at most ",
    "minItems": "items at least ",
    "maxItems": "items at most ",
}


def _typed(schema: Json) -> str:
    kind = schema.get("type", "object" if "$ref" in schema or "properties" in schema else "any")
    words = [" or ".join(kind) if isinstance(kind, list) else kind]
    if "items" in schema:
        words[0] += f" of {_accepted(schema['items'])}"
    bounds = {word: schema[name] for name, word in _BOUNDS.items() if name in schema}
    return ", ".join([*words, *(f"{word}`{value}`" for word, value in bounds.items())])


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in [head, ["---"] * len(head), *rows]]
    return [f"| {' | '.join(row)} |" for row in cells]
