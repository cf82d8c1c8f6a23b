"""An image in the memory of a Python program, or a path, as the bytes of an image file.

The user of this process trusts the image: nothing here is for a client's files. The bytes go where every file goes,
`prepared.prepare`, so that modes, depths and colour profiles have one meaning.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image

from hidream import arrays
from hidream.errors import InvalidInput
from hidream.parameter import refused

ACCEPTED = f"a PIL image, {arrays.ACCEPTED}, the path of a file, or its bytes"
IN_PNG = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
"""Pillow's modes that a PNG file keeps as they are."""
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
"""Pillow's modes with premultiplied alpha, and those without."""
FAST = 1
"""zlib's level: the file is read again at once."""


def file_bytes(field: str, value: object) -> bytes:
    """Turn an image into the bytes of a file without a loss. Raises InvalidInput, which names the field."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str | os.PathLike):
        return _read(field, value)
    if isinstance(value, Image.Image):
        return _encoded(field, value)
    if arrays.is_array(value):
        return _encoded(field, arrays.image_of(field, value, ACCEPTED))
    raise refused(field, value, ACCEPTED)


def _read(field: str, value: str | os.PathLike[str]) -> bytes:
    path = os.fspath(value)
    if isinstance(path, str) and path.startswith(("http://", "https://", "data:")):
        raise InvalidInput(f"{field} is {path!r:.100}, and nothing is downloaded; accepted: {ACCEPTED}", field=field)
    try:
        return Path(path).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL; RuntimeError: no home for "~"
        why = getattr(error, "strerror", None) or error
        raise InvalidInput(f"{field} is {str(path)!r:.100}, which cannot be read: {why}", field=field) from error


def _encoded(field: str, image: Image.Image) -> bytes:
    file = io.BytesIO()
    image = image.convert(PREMULTIPLIED[image.mode]) if image.mode in PREMULTIPLIED else image
    try:
        if image.mode in IN_PNG:
            image.save(file, "PNG", compress_level=FAST)
        else:
            image.save(file, "TIFF")  # CMYK, LAB, YCbCr and numbers of 32 bits
    except (OSError, ValueError, KeyError, SystemError) as error:  # no size, no file behind it, a mode that none keeps
        said = (
            f"{field} is a PIL image of mode {image.mode} and {image.width}*{image.height} pixels, which cannot be read"
        )
        raise InvalidInput(f"{said} ({error}); accepted: {ACCEPTED}", field=field) from error
    return file.getvalue()
