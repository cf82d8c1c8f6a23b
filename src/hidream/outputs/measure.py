"""How large an image is as it is shown: its file's header says it, and EXIF which side is up."""

from __future__ import annotations

import io

from PIL import ExifTags, Image

from hidream.errors import InvalidInput

_ON_ITS_SIDE = (5, 6, 7, 8)
"""Orientations in which width and height change places (EXIF 2.32, tag 0x0112)."""


def shown_size(field: str, data: bytes) -> tuple[int, int]:
    """Read width and height in pixels. Raises InvalidInput when this is no image; `field` is what errors call it."""
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # a stranger's bytes: Pillow raises a dozen kinds on damaged files, in its own words
        raise InvalidInput(f"{field} is no image that can be read; accepted: a PNG, JPEG or WebP file") from error
    return (image.height, image.width) if _lies_on_its_side(image) else image.size


def _lies_on_its_side(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
    except Exception:  # EXIF that is damaged says nothing
        return False
