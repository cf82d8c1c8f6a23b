"""Opens regular files only: a pipe, a device or a folder in a file's place is refused, and never blocks."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path

FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Windows has no pipes at paths, so no O_NONBLOCK, and it alone has O_BINARY. Python adds what keeps a descriptor from
child processes."""


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. Raises OSError if it is missing or no regular file: reading a pipe might never end.

    The open file is checked, not the path, so nothing can take its place in between.
    """
    descriptor = os.open(path, FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The content of a small file. Raises OSError as `open_regular` does, and when it has more than `most_bytes`."""
    with open_regular(path) as stream:
        content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes", str(path))
    return content


def sha256_of(path: Path) -> str:
    """The digest of a file, in hexadecimal digits. Raises OSError as `open_regular` does."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
