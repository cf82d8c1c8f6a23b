"""JSON with embedded files as base64, sent in pieces: what the client has not read yet stays in the file.

Four images are up to 30 MB of text, and a slow client may take half an hour to read them. The bytes are the same as if
the JSON was serialised in one piece, and their number is known before the first one is sent.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response, StreamingResponse

from hidream.outputs.object_store import ObjectStore

CHUNK_BYTES = 48 * 1024
"""The size of a piece of a file. As base64 it has 64 KiB, which is what a connection buffers before it pauses writing.
It is a multiple of 3, so that only a file's last piece may need padding."""
MEDIA_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class EmbeddedFile:
    """A file of an object store as a value in JSON: a text with its base64."""

    store: ObjectStore
    name: str
    size_bytes: int

    @classmethod
    async def of(cls, store: ObjectStore, name: str) -> EmbeddedFile:
        """Look up a file. Raises NotFound, ObjectStoreUnavailable."""
        return cls(store, name, (await store.metadata(name)).size_bytes)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the file as base64. Raises NotFound, ObjectStoreUnavailable."""
        _, chunks = await self.store.open(self.name)
        rest = b""
        async for chunk in chunks(0, self.size_bytes):
            at = 0
            while at + CHUNK_BYTES <= len(rest) + len(chunk):
                stop = at + CHUNK_BYTES - len(rest)
                text = base64.b64encode(rest + chunk[at:stop])
                rest, at = b"", stop  # freed before `yield`, which may wait long for a slow client
                yield text
            rest += chunk[at:]
        yield base64.b64encode(rest)


class JsonStream:
    """JSON with EmbeddedFile values, which can be iterated over once; `before` and `after` are put around it."""

    def __init__(self, content: object, before: str = "", after: str = "", **options: Any) -> None:  # noqa: ANN401
        self.files: list[EmbeddedFile] = []
        mark = secrets.token_hex(16)  # a placeholder that no client can guess

        def marked(value: object) -> str:
            assert isinstance(value, EmbeddedFile), f"{type(value).__name__} is not a JSON value"
            self.files.append(value)
            return mark

        text = json.dumps(content, default=marked, **options)
        self.texts = [each.encode() for each in f"{before}{text}{after}".split(mark)]

    @property
    def size_bytes(self) -> int:
        """The length of the JSON."""
        return sum(map(len, self.texts)) + sum(4 * -(-file.size_bytes // 3) for file in self.files)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the pieces; those of files have 64 KiB. Raises NotFound, ObjectStoreUnavailable."""
        first, *others = self.texts
        yield first
        for file, text in zip(self.files, others, strict=True):
            async for piece in file.pieces():
                yield piece
            yield text


async def json_response(content: object, headers: Mapping[str, str] | None = None) -> Response:
    """Answer 200 with JSON, with the same bytes as a JSONResponse.

    The first piece of the first file is read before this returns, so that a file that cannot be read leads to an error
    and not to a partial response. Raises NotFound, ObjectStoreUnavailable.
    """
    body = JsonStream(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if not body.files:
        return Response(body.texts[0], headers=headers, media_type=MEDIA_TYPE)
    pieces = aiter(body)
    first = [await anext(pieces), await anext(pieces)]
    length = {"Content-Length": str(body.size_bytes)}
    return StreamingResponse(_chain(first, pieces), headers=dict(headers or {}) | length, media_type=MEDIA_TYPE)


async def _chain(first: list[bytes], pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while first:
        yield first.pop(0)
    async for piece in pieces:
        yield piece
