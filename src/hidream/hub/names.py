"""The id of a model on the Hub: HiDream-ai/HiDream-I1-Dev, or with a revision HiDream-ai/HiDream-I1-Dev@main."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hidream.errors import InvalidInput
from hidream.hub.catalogue import CATALOGUE, WEIGHTS

MAIN = "main"
"""The revision of an id without one."""
_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(.+))?", re.ASCII)
_REVISION = re.compile(r"[\w-][\w.-]{0,99}(/[\w-][\w.-]{0,99}){0,5}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelId:
    """A repository of the Hub, and a branch, a tag or a commit of it."""

    repository: str
    revision: str = MAIN

    def __str__(self) -> str:
        return self.repository if self.revision == MAIN else f"{self.repository}@{self.revision}"


def as_id(model: str | Path) -> ModelId | None:
    """The id that a text may be; None if only a path can be meant, or if there is such a file or folder."""
    text = model.as_posix() if isinstance(model, Path) else model
    match = _ID.fullmatch(text)
    if not match or match[1].endswith(WEIGHTS) or os.path.exists(text):  # noqa: PTH110 - Path's refuses long texts
        return None
    return ModelId(match[1], match[2] or MAIN) if match[2] is None or _is_revision(match[2]) else None


def parse(text: str) -> ModelId:
    """The id that a short name or an id names, for `hidream models`. Raises InvalidInput."""
    name, _, given = text.partition("@")
    if name in CATALOGUE:
        return ModelId(CATALOGUE[name].repository, revision(given) if "@" in text else MAIN)
    match = _ID.fullmatch(text)
    if not match:
        raise InvalidInput(
            f"{text!r:.100} is no model; accepted: {', '.join(CATALOGUE)}, or an id of the Hub such as owner/name, "
            "each also with @REVISION"
        )
    return ModelId(match[1], revision(match[2]) if match[2] else MAIN)


def revision(text: str) -> str:
    """A branch, a tag or a commit. Raises InvalidInput: it becomes the name of a file."""
    if not _is_revision(text):
        raise InvalidInput(f"the revision is {text!r:.100}; accepted: a branch, a tag or a commit of 40 digits")
    return text


def _is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None and ".." not in text
