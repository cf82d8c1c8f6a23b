"""A file that is being written piece by piece on a disk of this machine, before a place takes it: never in memory.

It is gone at the end of its block, whatever happens, unless a place has moved it away (`place.Place.adopt`). What a
process that dies leaves behind has a name by which `folder.Folder` finds and removes it.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ParamSpec

from hidream.file_names import random_name
from hidream.types import ImageFormat

P = ParamSpec("P")

Reported = Callable[[str], AbstractContextManager[None]]
"""Says in a place's words that a file cannot be written: takes what was to be done with it."""


@dataclass(slots=True)
class Part:
    """An open file; `size_bytes` is what was written so far."""

    path: Path
    _file: BinaryIO
    _reported: Reported
    size_bytes: int = 0

    async def write(self, data: bytes | bytearray) -> None:
        """Append. Raises ObjectStoreUnavailable."""
        with self._reported("written"):
            await asyncio.to_thread(self.append, data)

    async def written(self, do: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call in a thread what appends by itself. Raises what it does; ObjectStoreUnavailable for its OSErrors."""
        with self._reported("written"):
            await asyncio.to_thread(do, *args, **kwargs)

    async def flush(self) -> None:
        """Let whoever opens `path` see all that was written. Raises ObjectStoreUnavailable."""
        with self._reported("written"):
            await asyncio.to_thread(self._file.flush)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Append, in a thread of the caller's. Raises OSError."""
        self._file.write(data)
        self.size_bytes += len(data)


@asynccontextmanager
async def part_in(folder: Path, reported: Reported) -> AsyncIterator[Part]:
    """Begin a file in a folder that is there. Raises ObjectStoreUnavailable."""
    with reported("written"):
        part = await asyncio.to_thread(_begun, folder, reported)
    try:
        yield part
    finally:
        await asyncio.to_thread(_end, part)


def _begun(folder: Path, reported: Reported) -> Part:
    descriptor, path = tempfile.mkstemp(dir=folder, prefix=f"{random_name(ImageFormat.PNG)}.")
    return Part(Path(path), os.fdopen(descriptor, "wb"), reported)


def _end(part: Part) -> None:
    try:
        part._file.close()
    except OSError:  # what was still to be written found no room; nobody wants it any more
        pass
    finally:
        part.path.unlink(missing_ok=True)
