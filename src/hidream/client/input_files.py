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
_NUMBERS = {"I": 65535, "F": 255}
"""The largest value of Pillow's modes for greys of 32 bits. Floats are from 0 to 1, or to 255 if any is above 1."""
_CONVERTED = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA", "I": "I;16"}
"""The PNG mode that keeps alpha and depth of one of Pillow's other modes; for the rest it is RGB."""


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
        path = Path(os.path.expanduser(value))  # noqa: PTH111 - it leaves a "~" without a home as it is
        try:
            return _filled(field, path.name, path.read_bytes())
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            why = error.strerror if isinstance(error, OSError) else error
            raise InvalidInput(f"{field} is {str(value)!r:.200}, which cannot be read: {why}", field=field) from error
    return "image.png", _png(field, _image_of(field, value))


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


def _png(field: str, image: Image.Image) -> bytes:
    file = io.BytesIO()
    try:
        _in_png_mode(image).save(file, "PNG", compress_level=1)
    except (OSError, ValueError) as error:  # a closed or truncated file behind it, no pixels, or numbers out of range
        said = f"{field} is a PIL image of mode {image.mode} and {image.width}*{image.height} pixels"
        raise InvalidInput(f"{said}, which cannot be read ({error}); accepted: {_ACCEPTED}", field=field) from error
    return file.getvalue()


def _in_png_mode(image: Image.Image) -> Image.Image:
    """Convert an image to a mode that PNG has. Raises ValueError for numbers that Pillow's conversion would clip."""
    if image.mode in _PNG_MODES:
        return image
    if image.mode in _NUMBERS:
        extrema: Any = image.getextrema()  # of the only channel
        (smallest, largest), most = extrema, _NUMBERS[image.mode]
        if not 0 <= smallest <= largest <= most:  # nor NaN
            raise ValueError(f"its values are from {smallest:g} to {largest:g}, not from 0 to {most}")
    if image.mode == "F":
        scale = 255 if largest <= 1 else 1
        return image.point(lambda value: value * scale + 0.5).convert("L")  # which rounds down
    return image.convert(_CONVERTED.get(image.mode, "RGB"))
