"""What a file is called: 256 random bits, and a suffix that says its type.

The name is the right to download the file, so it is drawn where nobody can guess it, and what does not look like a
name is no file: no path leads out of a folder, and no key out of a bucket's prefix. A name is never used for two
pictures, so whoever has one may keep what it stands for.
"""

from __future__ import annotations

import re
import secrets

from hidream.errors import NotFound
from hidream.types import ImageFormat

MEDIA_TYPES = {ImageFormat.PNG: "image/png", ImageFormat.JPEG: "image/jpeg", ImageFormat.WEBP: "image/webp"}

CACHE_CONTROL = "public, max-age=31536000, immutable"
"""A year, the longest that RFC 2616 (14.21) knew; browsers do not even ask again before it is over."""

NAME_BYTES = 32
PATTERN = f"[A-Za-z0-9_-]{{43}}(-[1-9])?[.]({'|'.join(ImageFormat)})"
"""The further pictures of a prediction share the first one's secret, and have a number behind it."""


_NAME = re.compile(PATTERN)


def draw_name(image_format: ImageFormat) -> str:
    """Draw the name of a new file: base64url of NAME_BYTES random bytes, and the format as suffix."""
    return f"{secrets.token_urlsafe(NAME_BYTES)}.{image_format}"


def is_name(text: str) -> bool:
    """Tell whether this could be the name of a file."""
    return _NAME.fullmatch(text) is not None


def format_of(name: str) -> ImageFormat:
    """Tell the format of a file from its name. Raises NotFound on what cannot be a name."""
    match = _NAME.fullmatch(name)
    if not match:
        raise NotFound("there is no such file")
    return ImageFormat(match[2])


def media_type_of(name: str) -> str:
    """Tell the Content-Type of a file from its name. Raises NotFound on what cannot be a name."""
    return MEDIA_TYPES[format_of(name)]
