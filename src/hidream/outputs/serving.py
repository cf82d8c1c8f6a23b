"""Downloads from an object store, with range and conditional requests (RFC 9110, sections 13 and 14).

This file knows headers and bytes, but neither the web framework nor the format of an error's body.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from email.utils import format_datetime

from hidream.file_names import CACHE_CONTROL, media_type_of
from hidream.outputs.object_store import ObjectMetadata, ObjectStore

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)
"""One range. For several or malformed ranges, the whole file is a valid response (14.2)."""


@dataclass(frozen=True, slots=True)
class Served:
    """A response: 200, 206, 304 without a body, or 416, whose body the caller writes."""

    status: int
    headers: dict[str, str]
    body: AsyncIterator[bytes]


async def serve(store: ObjectStore, name: str, method: str, asked: Mapping[str, str]) -> Served:
    """Answer a GET or HEAD of a file; `asked` has the request's headers by their names in lower case.

    The first bytes are read before this returns, so that a file that cannot be read leads to an error and not to a
    partial response. Raises NotFound, ObjectStoreUnavailable.
    """
    media_type = media_type_of(name)
    if method == "HEAD":
        metadata, chunks = await store.metadata(name), None
    else:
        metadata, chunks = await store.open(name)
    headers = _headers(metadata)
    if _unchanged(asked, metadata):
        return Served(304, headers, _nothing())
    status, start, stop = _part(asked, headers, metadata.size_bytes) if chunks else (200, 0, metadata.size_bytes)
    if status == 416:
        return Served(416, {"Content-Range": f"bytes */{metadata.size_bytes}"}, _nothing())
    headers |= {"Content-Type": media_type, "Content-Length": str(stop - start)}
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{metadata.size_bytes}"
    return Served(status, headers, await _begun(chunks(start, stop)) if chunks else _nothing())


def _headers(metadata: ObjectMetadata) -> dict[str, str]:
    return {
        "Accept-Ranges": "bytes",
        "Cache-Control": CACHE_CONTROL,
        "ETag": metadata.etag,
        "Last-Modified": format_datetime(metadata.modified, usegmt=True),
        "X-Content-Type-Options": "nosniff",
    }


def _unchanged(asked: Mapping[str, str], metadata: ObjectMetadata) -> bool:
    known = {tag.strip().removeprefix("W/") for tag in asked.get("if-none-match", "").split(",")}
    return not known.isdisjoint({metadata.etag, "*"})


def _part(asked: Mapping[str, str], headers: Mapping[str, str], size_bytes: int) -> tuple[int, int, int]:
    """Return the status, the first byte, and the byte after the last one."""
    whole = 200, 0, size_bytes
    match = _RANGE.fullmatch(asked.get("range", "").replace(" ", ""))
    if not match or match[1] == match[2] == "":
        return whole
    if asked.get("if-range", headers["ETag"]) not in (headers["ETag"], headers["Last-Modified"]):
        return whole  # the file has changed, so the client's part is outdated
    first, last = match.groups()
    if first and last and int(first) > int(last):
        return whole
    start = int(first) if first else max(size_bytes - int(last), 0)
    stop = min(int(last) + 1, size_bytes) if first and last else size_bytes
    return (206, start, stop) if start < stop else (416, 0, 0)


async def _begun(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    return _after(await anext(chunks, b""), chunks)


async def _after(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in chunks:
        yield chunk


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""  # makes this a generator
