"""JSON objects beside and inside of files of weights, and what is wrong with them in our own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hidream.errors import CheckpointError


def read_object(path: Path, accepted: str) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError when there is none; `accepted` says what should be there."""
    try:
        return object_of(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {why(error)}; accepted: {accepted}") from error


def object_of(text: str | bytes) -> dict[str, Any]:
    """The JSON object that a text is. Raises ValueError that says what it is instead."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON from line {error.lineno}, column {error.colno} on") from error
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    except (UnicodeDecodeError, TypeError) as error:
        raise ValueError("no text in UTF-8") from error
    if not isinstance(found, dict):
        raise ValueError("JSON, but no object")
    return found


def why(error: Exception) -> str:
    """A failure in a few words: the system's where it says them, else our own."""
    return (error.strerror or "the system refuses") if isinstance(error, OSError) else f"it is {error}"
