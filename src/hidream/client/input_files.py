"""Images to start from, in whatever form a user has them, as a URL or as the bytes of a file."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hidream import arrays
from hidream.errors import InvalidInput, MissingInput
from hidream.parameter import refused

if TYPE_CHECKING:
    from PIL import Image

_URL = re.compile(r"(https?://|data:)", re.IGNORECASE)
_ACCEPTED = f"a PIL image, {arrays.ACCEPTED}, the path of a file, its bytes, or a URL"
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}


def url_of(value: object) -> str:
    """Return the URL or data: URI that a value is; "" if it is something else."""
    return value.strip() if isinstance(value, str) and _URL.match(value.strip()) else ""


def file_of(field: str, value: Any) -> tuple[str, bytes]:  # noqa: ANN401 - whatever holds an image
    """Return the name and the bytes of an image file. A file's bytes stay as they are; pixels become a PNG.

    Raises InvalidInput, which names the field, for anything else, and for a path that cannot be read.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return _filled(field, "image", bytes(value))
    if isinstance(value, str | os.PathLike):
        path = Path(value)
        try:
            return _filled(field, path.name, path.read_bytes())
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            why = error.strerror if isinstance(error, OSError) else error
            raise InvalidInput(f"{field} is {str(value)!r:.200}, which cannot be read: {why}", field=field) from error
    return "image.png", _png(_image_of(field, value))


def _filled(field: str, name: str, content: bytes) -> tuple[str, bytes]:
    if not content:
        raise MissingInput(f"{field} is an empty file; accepted: {_ACCEPTED}", field=field)
    return name, content


def _image_of(field: str, value: Any) -> Image.Image:  # noqa: ANN401
    from PIL import Image

    if isinstance(value, Image.Image):
        return value
    if not arrays.is_array(value):
        raise refused(field, value, _ACCEPTED)
    return arrays.image_of(field, value, _ACCEPTED)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(file, "PNG", compress_level=1)
    return file.getvalue()
