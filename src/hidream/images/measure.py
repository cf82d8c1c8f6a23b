"""Validation of an image file: its format, whether it is complete, and its size after EXIF orientation."""

from __future__ import annotations

import io

from PIL import ExifTags, Image

from hidream.errors import InvalidInput
from hidream.images.image_file import UNTRUSTED_FORMATS, exif_of
from hidream.images.structure import ACCEPTED, check_exif
from hidream.types import FILE_ACCEPTED, ImageFormat, check_file

_SWAPPING_ORIENTATIONS = (5, 6, 7, 8)
"""Orientations that swap width and height (EXIF 2.32, tag 0x0112)."""
_FORMATS = {"PNG": ImageFormat.PNG, "JPEG": ImageFormat.JPEG, "MPO": ImageFormat.JPEG, "WEBP": ImageFormat.WEBP}
"""Pillow's names; an MPO is a JPEG file with further images after the first, as phones write them."""


def identify(field: str, data: bytes) -> ImageFormat:
    """Check that a file is a complete image. PNG has checksums for that; other formats must be decoded.

    Raises InvalidInput, which names the field, if it is not an image or has too many pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=UNTRUSTED_FORMATS)
        check_file(field, image.width, image.height)
        check_exif(field, exif_of(image))
        image_format = _FORMATS[image.format or ""]
        if image_format is ImageFormat.PNG:
            image.verify()
        else:
            image.draft(
                "RGB", (max(1, image.width // 8), max(1, image.height // 8))
            )  # a JPEG's full size would cost for nothing
            image.load()
    except InvalidInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidInput(f"{field} has too many pixels; {FILE_ACCEPTED}") from error
    except Exception as error:  # a stranger's bytes: Pillow raises half a dozen kinds on broken files
        raise InvalidInput(f"{field} is not an image that can be read ({len(data):,} bytes); {ACCEPTED}") from error
    return image_format


def oriented_size(field: str, data: bytes, formats: tuple[str, ...] | None = None) -> tuple[int, int]:
    """Read width and height in pixels of a file in one of Pillow's `formats`; None allows all of them.

    Raises InvalidInput, which names the field, if it is not an image.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Exception as error:  # a stranger's bytes: Pillow raises a dozen kinds on damaged files, in its own words
        raise InvalidInput(f"{field} is not an image that can be read; {ACCEPTED}") from error
    check_exif(field, exif_of(image))
    return (image.height, image.width) if _swaps_sides(image) else image.size


def _swaps_sides(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in _SWAPPING_ORIENTATIONS
    except Exception:  # damaged EXIF data is ignored
        return False
