"""Reads JSON objects beside and inside files of weights, and describes what is wrong with them.

These texts are untrusted, so their length, their nesting and their size in memory are limited here; callers need not
check. Python uses 64 bytes for each `{}`, so the brackets are counted first.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from hidream.errors import CheckpointError
from hidream.formats.regular_file import read_regular

JSON_MAX_BYTES = 2**25
"""Of one text. The published model's largest is an index of 0.2 MB; trainers' metadata have had several."""
BRACKETS_MAX = 2**18
"""Of lists and objects in one text; a header has three for each tensor, of which the published model has 2,000."""
DEPTH_MAX = 32
"""Of lists and objects within each other; configurations have four, and what copies one calls itself for each."""


def read_object(path: Path, accepted: str) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError when there is none; `accepted` says what should be there."""
    try:
        return object_of(read_regular(path, JSON_MAX_BYTES))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {why(error)}; accepted: {accepted}") from error


def object_of(text: str | bytes) -> dict[str, Any]:
    """The JSON object that a text is. Raises ValueError that says what it is instead."""
    if not isinstance(text, str | bytes):
        raise ValueError("not UTF-8 text")
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    if len(text) > JSON_MAX_BYTES or text.count("[") + text.count("{") > BRACKETS_MAX:
        raise ValueError(f"JSON of more than {JSON_MAX_BYTES:,} characters, or {BRACKETS_MAX:,} lists and objects")
    try:
        found = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_number, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON from line {error.lineno}, column {error.colno} on") from error
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("JSON, but not an object")
    _check_depth(found)
    return found


def why(error: Exception) -> str:
    """Describe an error in a few words: the system's, if it has some, else ours."""
    return (error.strerror or "the system refuses") if isinstance(error, OSError) else f"it is {error}"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"JSON that has the key {twice!r:.100} twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"JSON with {text}, which is not a JSON number")


def _whole(text: str) -> int:
    """A whole number; what has more digits than any use for it has would take time to convert and to print."""
    if len(text) > 20:
        raise ValueError("JSON with a whole number of more than 20 digits")
    return int(text)


def _check_depth(found: object) -> None:
    level = [found]
    for _ in range(DEPTH_MAX):
        level = [
            value
            for each in level
            for value in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
            if isinstance(value, dict | list)
        ]
        if not level:
            return
    raise ValueError("JSON that is nested too deeply")
