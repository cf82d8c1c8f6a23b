"""Where files lie: what a folder (`folder`) and a bucket (`bucket`) both can do. `location.open_place` opens one.

A place holds one namespace, so that a sweep of images never sees an upload. It knows names and bytes; neither who
asked, nor for how long a file is kept. Errors are NotFound, and ObjectStoreUnavailable for all that may pass: whoever
gets that one may try again, because every call here can be repeated.
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
"""What a download holds in memory at a time: an image is some dozens of turns of the loop, and a thousand slow readers
are 160 MB with what their connections hold."""


class Namespace(StrEnum):
    """What a place is for: the first part of a file's path, in the folder or bucket and in the URL."""

    OUTPUTS = "outputs"
    UPLOADS = "uploads"


@dataclass(frozen=True, slots=True)
class ObjectMetadata:
    """What a place says of a file; `etag` as the header has it, in quotes."""

    size_bytes: int
    modified: datetime
    etag: str


Chunks = Callable[[int, int], AsyncIterator[bytes]]
"""Reads the bytes from `start` to before `stop` of an opened file, in pieces of about CHUNK_BYTES."""


class ObjectStore(Protocol):
    """Files of one namespace, by name. Each method raises NotFound on what cannot be a name."""

    async def check(self) -> None:
        """Write and remove something, as at the start: raises ConfigurationError where that can never work."""

    async def write(self, name: str, data: bytes) -> None:
        """Put a file in its place, instead of one that is there: whole or not at all, and durable on return."""

    def part(self) -> AbstractAsyncContextManager[Part]:
        """Begin a file on a disk of this machine, piece by piece; at the end it is gone, unless `adopt` took it."""

    async def adopt(self, name: str, part: Part) -> None:
        """Put what was written in its place, as `write` does; the part is used up then."""

    async def read(self, name: str) -> bytes:
        """Read a file. Raises NotFound when it is not there, or no longer."""

    async def metadata(self, name: str) -> ObjectMetadata:
        """Tell what there is to know of a file without its bytes. Raises NotFound."""

    async def open(self, name: str) -> tuple[ObjectMetadata, Chunks]:
        """Begin to read a file, of which one stretch can then be read, once. Raises NotFound."""

    async def delete(self, names: Iterable[str]) -> None:
        """Remove files, and what interrupted writes of them left behind; what is not there is no error."""

    def names(self, older_than: datetime) -> AsyncIterator[str]:
        """Go through the names of all files that were written before, for a sweep; now and then one comes twice."""

    async def url(self, name: str, base_url: str, valid_s: float) -> str:
        """Say where a client who reaches this server by `base_url` gets the file; a signed URL expires in `valid_s`."""
