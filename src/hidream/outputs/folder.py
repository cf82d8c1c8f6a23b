"""An object store in a folder. Files are written atomically, and survive a power failure.

A file is written in `.parts` and then moved. What a crashed process leaves in `.parts` has the file's name or a new
one; `names` lists it and `delete` removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hidream.errors import ConfigurationError, NotFound, ObjectStoreUnavailable
from hidream.file_names import format_of, is_name
from hidream.outputs.object_store import CHUNK_BYTES, Chunks, Namespace, ObjectMetadata
from hidream.outputs.part import Part, part_in

PARTS = ".parts"


@dataclass(frozen=True, slots=True)
class Folder:
    """An object store (see `object_store.ObjectStore`) of the files `root/namespace/name`."""

    root: Path
    namespace: Namespace

    @property
    def path(self) -> Path:
        """The folder of this namespace."""
        return self.root / self.namespace

    async def check(self) -> None:
        """Create the folder, and try to write. Raises ConfigurationError."""
        try:
            await asyncio.to_thread(_try, self.path)
        except OSError as error:
            raise ConfigurationError(
                f"the folder {self.path} cannot be written to: {error.strerror}; accepted: one that this user can"
            ) from error

    async def write(self, name: str, data: bytes) -> None:
        """Write a file; when this returns, it is on the disk."""
        path = self._path_of(name)
        with _reported("written"):
            await asyncio.to_thread(_write, path, data)

    def part(self) -> AbstractAsyncContextManager[Part]:
        """Open a part in `.parts`."""
        return self._part()

    async def adopt(self, name: str, part: Part) -> None:
        """Move a part to its final name; when this returns, it is on the disk."""
        path = self._path_of(name)
        await part.flush()
        with _reported("written"):
            await asyncio.to_thread(_move, part.path, path)

    async def read(self, name: str) -> bytes:
        """Read a file. Raises NotFound if it does not exist."""
        with _reported("read"):
            return await asyncio.to_thread(self._path_of(name).read_bytes)

    async def metadata(self, name: str) -> ObjectMetadata:
        """Return size, time and ETag of a file. Raises NotFound."""
        with _reported("read"):
            stat = await asyncio.to_thread(self._path_of(name).stat)
        modified = datetime.fromtimestamp(stat.st_mtime, UTC)
        return ObjectMetadata(stat.st_size, modified, f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"')

    async def open(self, name: str) -> tuple[ObjectMetadata, Chunks]:
        """Open a file. Raises NotFound."""
        path = self._path_of(name)
        return await self.metadata(name), lambda start, stop: _chunks(path, start, stop)

    async def delete(self, names: Iterable[str]) -> None:
        """Delete files, and leftovers of interrupted writes."""
        wanted = {name for name in names if format_of(name)}
        with _reported("deleted"):
            await asyncio.to_thread(_delete, self.path, wanted)

    async def names(self, older_than: datetime) -> AsyncIterator[str]:
        """Yield the names of all files, complete or not, last written before `older_than`."""
        with _reported("listed"):
            found = await asyncio.to_thread(_names, self.path, older_than.timestamp())
        for name in found:
            yield name

    async def url(self, name: str, base_url: str, valid_s: float) -> str:
        """Return the URL at which this server serves the file."""
        return f"{base_url}/{self.namespace}/{name}"

    @asynccontextmanager
    async def _part(self) -> AsyncIterator[Part]:
        with _reported("written"):
            await asyncio.to_thread(_make, self.path / PARTS)
        async with part_in(self.path / PARTS, _reported) as part:
            yield part

    def _path_of(self, name: str) -> Path:
        format_of(name)
        return self.path / name


@contextlib.contextmanager
def _reported(done: str) -> Iterator[None]:
    """Turn OSErrors into errors for clients, with the reason but not the path, which is in the cause."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("there is no such file") from error
    except OSError as error:
        raise ObjectStoreUnavailable(f"a file cannot be {done} now: {error.strerror}; try again later") from error


async def _chunks(path: Path, start: int, stop: int) -> AsyncIterator[bytes]:
    while start < stop:
        with _reported("read"):
            chunk = await asyncio.to_thread(_byte_range, path, start, min(CHUNK_BYTES, stop - start))
        if not chunk:
            raise ObjectStoreUnavailable("a file was truncated while it was read; try again")
        yield chunk
        start += len(chunk)


def _byte_range(path: Path, start: int, size_bytes: int) -> bytes:
    """Read a range. The file is opened for each one, so that none stays open when a download is aborted."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size_bytes)


def _write(path: Path, data: bytes) -> None:
    parts = path.parent / PARTS
    _make(parts)
    descriptor, temporary = tempfile.mkstemp(dir=parts, prefix=f"{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _move(part: Path, path: Path) -> None:
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    _sync(path.parent)


def _make(folder: Path) -> None:
    """Create a folder and its parents, and sync each into its parent."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try(folder: Path) -> None:
    _make(folder / PARTS)
    with tempfile.TemporaryFile(dir=folder / PARTS):
        pass


def _delete(folder: Path, names: set[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
    for name, part in _parts(folder):
        if name in names:
            Path(part).unlink(missing_ok=True)


def _names(folder: Path, before: float) -> list[str]:
    files = [(entry.name, entry) for entry in _entries(folder) if is_name(entry.name)]
    found: dict[str, None] = {}
    for name, entry in files + _parts(folder):
        with contextlib.suppress(FileNotFoundError):  # finished or deleted since it was listed
            if entry.stat().st_mtime < before:
                found[name] = None
    return list(found)


def _parts(folder: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """List the files in `.parts`, each with its final name."""
    named = [(entry.name.rpartition(".")[0], entry) for entry in _entries(folder / PARTS)]
    return [(name, entry) for name, entry in named if is_name(name)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:  # nothing was written yet
        return []
