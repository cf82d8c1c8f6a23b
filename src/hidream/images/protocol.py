"""The protocol between a process that needs an untrusted image decoded and the decoder process.

A request is JSON and the files as open descriptors. A result is a file: arrays, then JSON, then the length of the JSON.
The reader validates everything in a result, because the process that wrote it has parsed untrusted bytes. This file
imports neither Pillow nor, until there are arrays, numpy, because API processes need neither.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hidream.errors import InvalidInput
from hidream.types import FILE_SIDE_MAX_PX, ImageFormat, Size

if TYPE_CHECKING:
    import numpy as np

    from hidream.images.prepared import Prepared

ALIGN = 64
"""Arrays begin at multiples of this."""
JSON_BYTES_MAX = 2**16
"""The maximum size of a result's JSON."""
WARNING_MAX_CHARS, WARNINGS_MAX = 500, 8
NO_MEMORY, BROKEN = 3, 4
"""Exit statuses of a job without a result."""
STATUS = struct.Struct("<i")
"""The status of a finished job: its exit status, or minus the number of the signal that killed it."""


class NoResult(Exception):
    """The file is not a valid result of the job."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a job's process: seconds of CPU time, seconds of wall-clock time, bytes of its own memory."""

    cpu_s: int
    wall_s: int
    memory_bytes: int


IDENTIFY_LIMITS = Limits(cpu_s=10, wall_s=60, memory_bytes=3 * 2**29)
"""An upload: the slowest file that is accepted, a WebP of 8192², takes 2 s and 1.1 GB."""
PREPARE_LIMITS = Limits(cpu_s=30, wall_s=180, memory_bytes=3 * 2**29)
"""An image and its mask: of 8192² both, 9 s and 1.4 GB."""


class Result:
    """A job's result, mapped into memory."""

    def __init__(self, file: int) -> None:
        """Map a file. Raises InvalidInput if the job refused the image, NoResult if the file is invalid."""
        try:
            self._memory = mmap.mmap(file, 0)
            length = min(int.from_bytes(self._memory[-8:], "little"), JSON_BYTES_MAX)
            self._json = json.loads(self._memory[-8 - length : -8])
        except (ValueError, OSError, RecursionError) as error:
            raise NoResult("no JSON at the end of the result") from error
        if not isinstance(self._json, dict):
            raise NoResult("no object at the end of the result")
        if "refused" in self._json:
            raise InvalidInput(_text(self._json["refused"], 1000))

    def image_format(self) -> ImageFormat:
        """Return the format from an `identify` job. Raises NoResult."""
        try:
            return ImageFormat(self._json["format"])
        except (KeyError, ValueError, TypeError) as error:
            raise NoResult("an unknown format") from error

    def size(self) -> tuple[int, int]:
        """Return width and height from an `oriented_size` job. Raises NoResult."""
        match self._json.get("size"):
            case [int(width), int(height)] if min(width, height) >= 1 and max(width, height) <= FILE_SIDE_MAX_PX:
                return width, height
        raise NoResult("no width and height")

    def prepared(self, sizes: Sequence[Size]) -> Prepared:
        """Return the planes from a `prepare` job for these sizes, without copying them. Raises NoResult."""
        match self._json:
            case {"layers": [*layers], "warnings": [*warnings]} if len(layers) == len(sizes):
                pass
            case _:
                raise NoResult("not as many layers as sizes")
        from hidream.images.prepared import Planes, Prepared

        planes, at = {}, 0
        for size, layer in zip(sizes, layers, strict=True):
            match layer:
                case [bool(has_mask), bool(has_alpha)]:
                    image, at = self._array(at, "float32", 3, size)
                    mask, at = self._array(at, "uint8", 1, size) if has_mask else (None, at)
                    alpha, at = self._array(at, "float32", 1, size) if has_alpha else (None, at)
                    planes[size] = Planes(image, None if mask is None else mask != 0, alpha)
                case _:
                    raise NoResult("a layer of another form")
        return Prepared(planes, tuple(_text(warning, WARNING_MAX_CHARS) for warning in warnings[:WARNINGS_MAX]))

    def _array(self, at: int, dtype: str, channels: int, size: Size) -> tuple[np.ndarray, int]:
        """Return the array [channels, H, W] at offset `at`, and the offset of the next one."""
        import numpy as np

        count = channels * size.width * size.height
        try:
            found = np.frombuffer(self._memory, dtype, count, at).reshape(channels, size.height, size.width)
        except ValueError as error:
            raise NoResult("fewer numbers than the sizes need") from error
        return found, at + found.nbytes + -found.nbytes % ALIGN


def _text(value: object, max_chars: int) -> str:
    if not isinstance(value, str):
        raise NoResult("not a text")
    return value[:max_chars]
