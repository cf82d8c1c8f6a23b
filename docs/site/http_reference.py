"""The HTTP reference as Markdown, from the OpenAPI document: a section for each route, with its fields as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
Route = tuple[str, Json]
"""A path, and what the document says about one of its methods."""

INTRODUCTION = """# HTTP reference

Every route with its parameters, fields and statuses, from the OpenAPI document that a server has at `/openapi.json`.
[The HTTP API](../API.md) explains how to use them. Every route needs a key ([AUTH.md](../AUTH.md)), unless it says that
it does not.
"""


def page(document: Json) -> str:
    """Render the page of an OpenAPI 3.1 document."""
    schemas = document["components"]["schemas"]
    groups: dict[str, list[Route]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method != "head":  # the status and headers of its GET
                groups.setdefault(_alike(method, operation), []).append((path, operation))
    sections = [_section(key.partition(" ")[0], routes, schemas) for key, routes in groups.items()]
    return "\n".join([INTRODUCTION, *sections])


def _alike(method: str, operation: Json) -> str:
    """A text that is equal for routes that differ in nothing but their path and their body, such as those of models."""
    return f"{method.upper()} {json.dumps(operation | {'requestBody': None}, sort_keys=True)}"


def _section(method: str, routes: list[Route], schemas: Json) -> str:
    """Render routes that are alike: what they share, and the body of each where they differ."""
    paths, operation = [path for path, _ in routes], routes[0][1]
    lines = [f"## {method} {_in_one(paths)}", "", operation["summary"]]
    if operation.get("security") == []:
        lines[-1] += " No key is needed."
    if len({path.count("/") for path in paths}) > 1:
        lines += ["", f"On {_listed(paths)}."]
    if parameters := operation.get("parameters"):
        rows = [[f"`{each['name']}`", each["in"], _accepted(each["schema"])] for each in parameters]
        lines += ["", *_table(["parameter", "in", "accepted"], rows)]
    lines += _bodies(routes, schemas)
    answers = []
    for status, response in sorted(operation["responses"].items()):
        content = response.get("content", {})
        answers.append([status, response["description"], ", ".join(f"`{each}`" for each in content)])
        if status == "200" and "application/json" in content:
            lines += ["", "Answer:", "", *_fields(content["application/json"]["schema"], schemas)]
    lines += ["", *_table(["status", "meaning", "content"], answers), ""]
    return "\n".join(lines)


def _in_one(paths: list[str]) -> str:
    """Write paths as one, with the alternatives of a segment in braces; the first, if their lengths differ."""
    segments = [path.split("/") for path in paths]
    if len({len(each) for each in segments}) > 1:
        return paths[0]
    alternatives = [list(dict.fromkeys(each)) for each in zip(*segments, strict=True)]
    return "/".join(each[0] if len(each) == 1 else f"{{{','.join(each)}}}" for each in alternatives)


def _listed(paths: list[str]) -> str:
    return ", ".join(f"`{path}`" for path in paths)


def _bodies(routes: list[Route], schemas: Json) -> list[str]:
    """Render the bodies that differ, with the paths that take each: the first whole, then what is new in the next."""
    by_body: dict[str, list[str]] = {}
    for path, operation in routes:
        by_body.setdefault(json.dumps(operation.get("requestBody", {}).get("content", {})), []).append(path)
    lines: list[str] = []
    before: list[str] = []
    for text, paths in by_body.items():
        of = f" of {_listed(paths)}" if len(by_body) > 1 else ""
        for media_type, content in json.loads(text).items():
            rows = _fields(content["schema"], schemas)
            new = [row for row in rows[2:] if row not in before]
            assert len(by_body) == 1 or _names(before) <= _names(rows), "a body lacks a field of the one before"
            since = ", has in addition, or in another form" if before else ""
            lines += ["", f"Body{of}, `{media_type}`{since}:", "", *rows[:2], *new]
            before = rows if of else []
    return lines


def _names(rows: list[str]) -> set[str]:
    return {row.split(" | ")[0] for row in rows[2:]}


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
