"""An image in the memory of a Python program, or a path, as the bytes of an image file.

The user of this process trusts the image: nothing here is for a client's files. The bytes go where every file goes,
`prepared.prepare`, so that modes, depths and colour profiles have one meaning. H height, W width.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from hidream.errors import InvalidInput
from hidream.parameter import refused

ACCEPTED = (
    "a PIL image, an array [height, width, 3 or 4] of uint8 or of floats from 0 to 1, the path of a file, or its bytes"
)
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
    if hasattr(value, "__array__"):
        return _encoded(field, _of_array(field, np.asarray(value)))
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


def _of_array(field: str, array: np.ndarray) -> Image.Image:
    """Make a PIL image of an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8, bool or floats."""
    if array.ndim == len("HWC") and array.shape[2] == 1:
        array = array[:, :, 0]
    shape_fits = array.ndim == len("HW") or (array.ndim == len("HWC") and array.shape[2] in (3, 4))
    if (
        not shape_fits
        or not array.size
        or array.dtype.kind not in "buf"
        or (array.dtype.kind == "u" and array.itemsize > 1)
    ):
        raise InvalidInput(
            f"{field} is an array {list(array.shape)} of {array.dtype}; accepted: {ACCEPTED}", field=field
        )
    if array.dtype.kind == "b":
        array = array * np.uint8(255)
    elif array.dtype.kind == "f":
        smallest, largest = array.min(), array.max()
        if not 0 <= smallest <= largest <= 1:  # nor NaN
            raise InvalidInput(
                f"{field} has values from {smallest:g} to {largest:g}; accepted: floats from 0 to 1, or uint8",
                field=field,
            )
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array))
