"""A part: a file that is written in pieces to a local disk, before an object store adopts it.

It is deleted at the end of its block, unless an object store has moved it (`object_store.ObjectStore.adopt`). A part
that a crashed process leaves behind has a name by which `folder.Folder` finds and deletes it.
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
"""A context manager that turns OSErrors into an object store's errors; its argument is the failed action."""


@dataclass(slots=True)
class Part:
    """An open file; `size_bytes` counts the bytes written so far."""

    path: Path
    _file: BinaryIO
    _reported: Reported
    size_bytes: int = 0

    async def write(self, data: bytes | bytearray) -> None:
        """Append. Raises ObjectStoreUnavailable."""
        with self._reported("written"):
            await asyncio.to_thread(self.append, data)

    async def written(self, do: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call `do`, which appends, in a thread. Raises what it raises; OSErrors become ObjectStoreUnavailable."""
        with self._reported("written"):
            await asyncio.to_thread(do, *args, **kwargs)

    async def flush(self) -> None:
        """Flush, so that readers of `path` see all that was written. Raises ObjectStoreUnavailable."""
        with self._reported("written"):
            await asyncio.to_thread(self._file.flush)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Append; the caller does so in a thread. Raises OSError."""
        self._file.write(data)
        self.size_bytes += len(data)


@asynccontextmanager
async def part_in(folder: Path, reported: Reported) -> AsyncIterator[Part]:
    """Open a part in an existing folder. Raises ObjectStoreUnavailable."""
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
    except OSError:  # the last bytes could not be written, but the file is deleted anyway
        pass
    finally:
        part.path.unlink(missing_ok=True)
