"""Parameters as JSON schemas, for those who ask what a model takes, and for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from hidream.parameter import Schema
from hidream.server.parameters import Api
from hidream.types import Status, Variant

SHOWN = [status for status in Status if status is not Status.DELETED]
"""States that an answer may tell."""


def submission(api: Api, variant: Variant) -> Schema:
    """Describe what a model takes in a version of the API; what it passes over is not named."""
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
    """Describe what the list of one's tasks takes."""
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
