"""Names of files: 256 random bits, and a suffix that gives the format.

Whoever knows the name may download the file, so it is random and cannot be guessed. Anything that does not look like a
name is not a file, so no path leads out of a folder, and no key out of a bucket's prefix. A name is never used for two
images, so clients may cache its file. The further images of a task share the secret of the first one, followed by a
number.
"""

from __future__ import annotations

import re
import secrets

from hidream.errors import NotFound
from hidream.types import FORMATS, IMAGES_MAX, ImageFormat

MEDIA_TYPES = {image_format: file.media_type for image_format, file in FORMATS.items()}

CACHE_CONTROL = "public, max-age=31536000, immutable"
"""A year, the longest that RFC 2616 (14.21) knew; browsers do not even ask again before it is over."""

NAME_BYTES = 32
SECRET_CHARS = 43
"""Of NAME_BYTES in base64url."""
PATTERN = f"[A-Za-z0-9_-]{{{SECRET_CHARS}}}(-[1-9])?[.]({'|'.join(ImageFormat)})"
assert IMAGES_MAX <= 10, "one digit numbers the further images"

_NAME = re.compile(PATTERN)


def random_name(image_format: ImageFormat) -> str:
    """Make a random name of a new file: base64url of NAME_BYTES random bytes, and the format as suffix."""
    return f"{secrets.token_urlsafe(NAME_BYTES)}.{image_format}"


def all_names(first: str, count: int) -> tuple[str, ...]:
    """Give the names of all files of a task, from that of its first one."""
    stem, _, suffix = first.rpartition(".")
    return (first, *(f"{stem}-{i}.{suffix}" for i in range(1, count)))


def first_of(name: str) -> str:
    """Undo `all_names`: tell the name of a task's first file from that of any."""
    stem, _, suffix = name.rpartition(".")
    secret, dash, number = stem[:SECRET_CHARS], stem[SECRET_CHARS : SECRET_CHARS + 1], stem[SECRET_CHARS + 1 :]
    return f"{secret}.{suffix}" if dash == "-" and number.isdigit() else name


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
