"""One prediction: a row of the table, as other packages see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hidream.file_names import all_names
from hidream.request import ImageRequest
from hidream.store.schema import PREDICTIONS
from hidream.types import Status, Step


@dataclass(frozen=True, slots=True)
class Prediction:
    """A request and its state. Times are ms since the epoch, None until they are known.

    `attempt` counts the claims, `workers_lost` those whose worker was lost. `nsfw` has a flag for each image.
    `work` is its cost in pixel steps; the queue is sorted by `virtual_start` (`admission`). `priority` is that of its
    key when it was accepted. `base_url` is the URL by which its client reached the server. `warnings` are those of the
    request, then those of the worker. `step` of `steps` is its progress, as last reported.
    """

    id: str
    key_id: str
    model: str
    input: ImageRequest
    output_name: str
    status: Status
    code: int
    error: str
    version: str
    nsfw: tuple[bool, ...]
    created_ms: int
    started_ms: int | None
    finished_ms: int | None
    inference_ms: int
    warnings: tuple[str, ...]
    attempt: int
    workers_lost: int
    pixels: int
    work: int
    virtual_start: int
    base_url: str
    webhook: str
    step: int
    steps: int
    priority: int = 0

    @property
    def progress(self) -> Step[bytes]:
        """Its progress, as last reported."""
        return Step(self.step, self.steps)

    @property
    def execution_ms(self) -> int:
        """The time from the claim to the end in ms, 0 until then."""
        if self.started_ms is None or self.finished_ms is None:
            return 0
        return self.finished_ms - self.started_ms

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of its image files: the first is unguessable, the others append a number to the same secret."""
        return all_names(self.output_name, self.input.num_images)

    def to_row(self) -> dict[str, Any]:
        """Return the values of its columns."""
        row = {name: getattr(self, name) for name in self.__slots__}
        return row | {"input": self.input.to_json(), "nsfw": list(self.nsfw), "warnings": list(self.warnings)}

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> Prediction:
        """Undo `to_row`, for a row of COLUMNS."""
        values = dict(zip(cls.__slots__, row, strict=True))
        values["input"] = ImageRequest.from_json(values["input"])
        values["status"] = Status(values["status"])
        values["nsfw"], values["warnings"] = tuple(values["nsfw"]), tuple(values["warnings"])
        return cls(**values)


def writable(text: str) -> str:
    """Replace what a database cannot store: zero bytes, and lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


COLUMNS = tuple(PREDICTIONS.c[name] for name in Prediction.__slots__)
