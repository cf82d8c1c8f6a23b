"""JSON schemas of the parameters, for the list of models and for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from hidream.parameter import Schema
from hidream.server.parameters import Api
from hidream.types import Status, Variant

SHOWN = [status for status in Status if status is not Status.DELETED]
"""The states that a response may contain."""


def submission(api: Api, variant: Variant) -> Schema:
    """Return the schema of a submission: the parameters that a model uses in this version of the API."""
    properties = {
        each.name: each.schema(api.kind(each.name), api.defaults.get(each.attribute))
        for each in api.parameters(variant)
    }
    return {
        "type": "object",
        "properties": properties,
        "required": ["prompt"],
        "x-order-properties": list(properties),
    }


def listing() -> Schema:
    """Return the schema of a request for the list of predictions."""
    moment = {"anyOf": [{"type": "string", "format": "date-time"}, {"enum": ["", None]}]}
    properties: dict[str, Any] = {
        "page": {"type": ["integer", "null"], "minimum": 1, "maximum": 1_000_000_000},
        "page_size": {"type": ["integer", "null"], "minimum": 1, "maximum": 100},
        "created_after": moment,
        "created_before": moment,
        "model": {"type": ["string", "null"]},
        "status": {"enum": [*SHOWN, "", None]},
        "include_inputs": {"type": ["boolean", "null"]},
    }
    return {"type": "object", "properties": properties}
