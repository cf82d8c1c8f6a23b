"""The folder of finished pictures. A file is there whole or not at all, and once there survives a power cut.

Its name is the right to download it: 256 random bits, drawn by the store. A name that does not look like that
is no name, so no path leads out of the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
from pathlib import Path

from hidream.errors import NotFound
from hidream.types import ImageFormat

_NAME = re.compile(rf"[A-Za-z0-9_-]{{43}}\.(?P<format>{'|'.join(ImageFormat)})")


def path_of(folder: Path, name: str) -> Path:
    """Tell where the file of this name is, or will be. Raises NotFound on what cannot be a name."""
    format_of(name)
    return folder / name


def format_of(name: str) -> ImageFormat:
    """Tell the format of a file from its name. Raises NotFound on what cannot be a name."""
    match = _NAME.fullmatch(name)
    if not match:
        raise NotFound("there is no such file")
    return ImageFormat(match["format"])


async def write(folder: Path, name: str, data: bytes) -> None:
    """Put a file in its place; when this returns, it is on the disk."""
    await asyncio.to_thread(_write, path_of(folder, name), data)


async def read(folder: Path, name: str) -> bytes:
    """Read a file. Raises NotFound when it is not there, or no longer."""
    try:
        return await asyncio.to_thread(path_of(folder, name).read_bytes)
    except FileNotFoundError as error:
        raise NotFound("there is no such file") from error


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
