"""What the server says about a task (`Prediction`), and the images of a finished one (`Result`)."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hidream.errors import (
    HiDreamError,
    Interrupted,
    InvalidInput,
    MissingInput,
    NotFinite,
    PromptRefused,
    ServerError,
    TaskFailed,
)
from hidream.types import FORMAT_NAMES, ImageFormat, Status

if TYPE_CHECKING:
    from PIL import Image

UNFINISHED = {Status.CREATED, Status.PROCESSING, "pending", "queued"}
"""States that a task leaves again; other servers have names of their own."""
STOPPED = {Status.CANCELLED, Status.DELETED}
FAILURES: dict[int, type[HiDreamError]] = {
    each.code: each for each in (PromptRefused, MissingInput, InvalidInput, NotFinite)
}
"""The errors of failed tasks by `code`; any other is TaskFailed."""
_NAMES = ("id", "model", "status")
_TEXTS = ("version", "created_at", "error")
_LISTS = ("outputs", "has_nsfw_contents", "warnings")


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a task went, in seconds: in the model, and from a worker's claim to the end."""

    inference_s: float = 0.0
    execution_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """A task as the server described it at one moment.

    `seed` is None, and `version` empty, if the server does not say them. `queue` has the position of a waiting task.
    `input` is the request; only `list(include_inputs=True)` and webhooks have it.
    """

    id: str
    model: str
    status: str
    outputs: tuple[str, ...] = field(default=(), repr=False)
    has_nsfw_contents: tuple[bool, ...] = ()
    seed: int | None = None
    version: str = ""
    warnings: tuple[str, ...] = ()
    timings: Timings = Timings()
    created_at: str = ""
    error: str = ""
    code: int | None = None
    queue: Mapping[str, Any] | None = None
    input: Mapping[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, data: Any) -> Self:  # noqa: ANN401 - what JSON says
        """Read the server's description. Raises ServerError if it is none."""
        try:
            known = {name: data[name] for name in _NAMES}
            texts: dict[str, Any] = {name: data.get(name) or "" for name in _TEXTS}
            lists: dict[str, Any] = {name: tuple(data.get(name) or ()) for name in _LISTS}
            others: dict[str, Any] = {name: data.get(name) for name in ("seed", "code", "queue", "input")}
            _check_types(data, texts, others)
            inference_ms, execution_ms = (data.get("timings") or {}).get("inference"), data.get("executionTime")
            timings = Timings((inference_ms or 0) / 1000, (execution_ms or 0) / 1000)
        except (KeyError, TypeError, AttributeError) as error:
            raise ServerError(f"the server describes a task as {data!r:.200}") from error
        return cls(**known, **texts, **lists, **others, timings=timings)

    @property
    def ended(self) -> bool:
        """Whether the task is in its final state."""
        return self.status not in UNFINISHED

    def check(self) -> None:
        """Raise what went wrong, unless the task is completed or not finished."""
        if self.ended and self.status != Status.COMPLETED:
            kind = Interrupted if self.status in STOPPED else FAILURES.get(self.code or 0, TaskFailed)
            failure = kind(self.error or f"the task was {self.status}")
            failure.task_id = self.id
            failure.add_note(f"task id {self.id}")
            raise failure


@dataclass(frozen=True)
class Result:
    """The images of a finished task: `files` are the server's bytes, decoded only if `image` or `images` is read."""

    prediction: Prediction
    files: tuple[bytes, ...] = field(repr=False)

    @property
    def id(self) -> str:
        """The id of the task."""
        return self.prediction.id

    @property
    def seed(self) -> int | None:
        """The seed of the first image; the next one has the next seed."""
        return self.prediction.seed

    @property
    def version(self) -> str:
        """The model's version: with the same parameters and seed, it gives the same image."""
        return self.prediction.version

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the server has to say about the request."""
        return self.prediction.warnings

    @property
    def timings(self) -> Timings:
        """Where the time went."""
        return self.prediction.timings

    @property
    def image(self) -> Image.Image:
        """The first image."""
        return self.images[0]

    @cached_property
    def images(self) -> list[Image.Image]:
        """All images."""
        return [opened(file) for file in self.files]

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the files as they came, with their metadata, and return their paths.

        Several images are numbered by their seeds: `fox.png` becomes `fox-7.png`, `fox-8.png`. Raises InvalidInput if
        the suffix is that of another format than the file's.
        """
        path = Path(os.path.expanduser(path))  # noqa: PTH111 - it leaves a "~" without a home as it is
        for file in self.files:
            _check_suffix(path, file)
        first = 1 if self.seed is None else self.seed
        numbered = [path.with_name(f"{path.stem}-{first + i}{path.suffix}") for i in range(len(self.files))]
        paths = [path] if len(self.files) == 1 else numbered
        for each, file in zip(paths, self.files, strict=True):
            each.write_bytes(file)
        return paths


def _check_types(data: Mapping[str, Any], texts: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
    """Raise TypeError if one of the server's values has another type than `Prediction` says."""
    if not all(isinstance(data[name], str) and data[name] for name in _NAMES):
        raise TypeError("id, model or status is no text")
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError("a text is none")
    if not all(isinstance(data.get(name) or [], list) for name in _LISTS):
        raise TypeError("a list is none")
    if not all(numbers[name] is None or type(numbers[name]) is int for name in ("seed", "code")):
        raise TypeError("a whole number is none")


def opened(file: bytes) -> Image.Image:
    """Decode an image file. Raises ServerError if it is none."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(file))
        image.load()
    except Exception as error:  # whatever Pillow says about the bytes of a stranger
        raise ServerError(f"the server's image cannot be decoded: {error}") from error
    return image


def embedded(output: str) -> bytes | None:
    """Return the file that an output contains as base64 or a data: URI; None if it is a URL."""
    if not isinstance(output, str):
        raise ServerError(f"the server's output is {output!r:.100}, which is no text")
    if output.startswith(("http://", "https://")):
        return None
    try:
        return base64.b64decode(output.partition(",")[2] if output.startswith("data:") else output, validate=True)
    except ValueError as error:
        raise ServerError(f"the server's output is {output!r:.100}, neither a URL nor base64") from error


def _check_suffix(path: Path, file: bytes) -> None:
    from PIL import Image

    suffix = path.suffix.removeprefix(".").lower()
    if not suffix:
        return
    if suffix not in FORMAT_NAMES:
        accepted = ", ".join(f".{name}" for name in FORMAT_NAMES)
        raise InvalidInput(f"path is {str(path)!r:.200}; accepted: a file name that ends with {accepted}", field="path")
    try:
        found = str(Image.open(io.BytesIO(file)).format).lower()
    except Exception:  # no format that is known here, or whatever else Pillow says about the bytes of a stranger
        return
    if found in list(ImageFormat) and FORMAT_NAMES[suffix] != found:
        cure = f'request output_format="{FORMAT_NAMES[suffix]}", or name a file that ends with .{found}'
        raise InvalidInput(f"path is {str(path)!r:.200}, but the image is a {found.upper()} file; {cure}", field="path")
