"""Pixels to the bytes of a PNG, JPEG or WebP file that says how to draw it again.

Each file carries the seed and the version of the model, and nothing of the prompt: PNG as text chunks, JPEG
and WebP as a JSON object in EXIF's UserComment. Equal pixels with equal metadata give equal bytes.
"""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from hidream.types import ImageFormat

MEDIA_TYPES = {ImageFormat.PNG: "image/png", ImageFormat.JPEG: "image/jpeg", ImageFormat.WEBP: "image/webp"}

PNG_COMPRESS_LEVEL = 1
JPEG_QUALITY = 95
WEBP_QUALITY = 90

_ASCII_COMMENT = b"ASCII\0\0\0"
"""What EXIF wants in front of a UserComment, to name its character code."""


def encode(pixels: np.ndarray, output_format: ImageFormat, *, seed: int, version: str) -> bytes:
    """Encode uint8 pixels [height, width, 3]."""
    image = Image.fromarray(pixels)
    about = {"Software": "hidream", "seed": str(seed), "version": version}
    file = io.BytesIO()
    match output_format:
        case ImageFormat.PNG:
            image.save(file, "PNG", compress_level=PNG_COMPRESS_LEVEL, pnginfo=_text_chunks(about))
        case ImageFormat.JPEG:
            image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4", exif=_exif(about))
        case ImageFormat.WEBP:
            image.save(file, "WEBP", quality=WEBP_QUALITY, method=2, exif=_exif(about))
    return file.getvalue()


def _text_chunks(about: dict[str, str]) -> PngInfo:
    chunks = PngInfo()
    for key, value in about.items():
        chunks.add_text(key, value)
    return chunks


def _exif(about: dict[str, str]) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = about["Software"]
    comment = _ASCII_COMMENT + json.dumps(about).encode("ascii")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif
