"""The interface of object stores: a folder (`folder`) or a bucket (`bucket`). `location.open_object_store` opens one.

An object store holds one namespace, so that a sweep of outputs never sees an upload. It knows names and bytes, but
neither keys nor how long a file is kept. Errors are NotFound, and ObjectStoreUnavailable for temporary failures: after
that one the caller may retry, because every call is idempotent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from hidream.outputs.part import Part

CHUNK_BYTES = 64 * 1024
"""How much of a file a download has in memory: an image takes some dozens of iterations of the event loop, and a
thousand slow clients take 160 MB including their connections' buffers."""


class Namespace(StrEnum):
    """A kind of files: the first part of a file's path, in the folder or bucket and in the URL."""

    OUTPUTS = "outputs"
    UPLOADS = "uploads"


@dataclass(frozen=True, slots=True)
class ObjectMetadata:
    """The metadata of a file; `etag` is in quotes, as in the header."""

    size_bytes: int
    modified: datetime
    etag: str


Chunks = Callable[[int, int], AsyncIterator[bytes]]
"""Reads the bytes `start` to `stop`, exclusive, of an opened file, in pieces of about CHUNK_BYTES."""


class ObjectStore(Protocol):
    """The files of one namespace, by name. Each method raises NotFound for an invalid name."""

    async def check(self) -> None:
        """Test whether files can be written and deleted. Raises ConfigurationError if that can never work."""

    async def write(self, name: str, data: bytes) -> None:
        """Write a file, or replace it, atomically and durably."""

    def part(self) -> AbstractAsyncContextManager[Part]:
        """Open a part, a local file to write in pieces; it is deleted at the end of the block unless it is adopted."""

    async def adopt(self, name: str, part: Part) -> None:
        """Store a part's contents like `write`; after that, the part cannot be used."""

    async def read(self, name: str) -> bytes:
        """Read a file. Raises NotFound if it does not exist."""

    async def metadata(self, name: str) -> ObjectMetadata:
        """Return the metadata of a file. Raises NotFound."""

    async def open(self, name: str) -> tuple[ObjectMetadata, Chunks]:
        """Open a file, of which one range can be read, once. Raises NotFound."""

    async def delete(self, names: Iterable[str]) -> None:
        """Delete files, and leftovers of interrupted writes; a file that does not exist is no error."""

    def names(self, older_than: datetime) -> AsyncIterator[str]:
        """Yield the names of all files last written before `older_than`, for a sweep; a name may occur twice."""

    async def url(self, name: str, base_url: str, valid_s: float) -> str:
        """Return the URL of a file for clients that use `base_url`; a signed URL is valid for `valid_s` seconds."""
