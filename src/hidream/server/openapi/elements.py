"""What the description of a route is made of: operations, responses, parameters, objects and the envelope."""

from __future__ import annotations

from typing import Any

from hidream.server.parameters import V2, V3

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
INTEGER: Json = {"type": "integer"}
NUMBER: Json = {"type": "number"}
NULLABLE_TEXT: Json = {"type": ["string", "null"]}

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


def operation(
    summary: str,
    answer: Json | None,
    parameters: list[Json] | None = None,
    body: Json | None = None,
    errors: tuple[int, ...] = (),
    form: str = "Error",
) -> Json:
    """Describe a method of a path. Errors that every route can return are added."""
    operation: Json = {"summary": summary, "responses": failures((401, 403, 404, 429, 503, *errors), form)}
    if answer is not None:
        operation["responses"]["200"] = content("Success.", "application/json", answer)
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def failures(statuses: tuple[int, ...], form: str) -> Json:
    """Describe the responses of these statuses; `form` is the schema of the error."""
    return {str(status): content(_REASONS[status], "application/json", reference(form)) for status in statuses}


def content(description: str, media_type: str, schema: Json) -> Json:
    """Describe a response with a body."""
    return {"description": description, "content": {media_type: {"schema": schema}}}


def without_content(response: Json) -> Json:
    """The same response without a body, for HEAD."""
    return {"description": response["description"]}


def parameter(name: str, where: str, schema: Json) -> Json:
    """Describe a parameter in the path, the query or a header."""
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


def id_of(name: str) -> Json:
    """Describe a parameter in the path that is an id."""
    return parameter(name, "path", {"type": "string", "pattern": "^[0-9a-f]{32}$"})


def reference(name: str) -> Json:
    """Refer to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def object_of(*, optional: tuple[str, ...] = (), **properties: Json) -> Json:
    """Describe an object; properties are required unless they are `optional`."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def envelope(data: Json) -> Json:
    """Describe a successful answer of the API."""
    return object_of(code={"const": 200}, message={"const": "success"}, data=data)


def with_nulls(described: Json) -> Json:
    """Accept null for an absent parameter, as the routes do."""
    properties = {
        name: each if name in described["required"] else {"anyOf": [each, {"type": "null"}]}
        for name, each in described["properties"].items()
    }
    return described | {"properties": properties}


VERSION = parameter("api", "path", {"enum": [V2.name, V3.name]})
