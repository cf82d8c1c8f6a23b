"""JSON in which files stand as base64, sent in pieces: what a reader has not taken yet stays in its file.

Four images are up to 30 MB of text, and whoever asked for them may take half an hour to read it. The bytes are those
that the same JSON has when it is written in one piece, and their number is known before the first is sent.
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
"""Of a file, and 64 KiB as base64: as much as a connection takes before it asks to wait. Three bytes are four digits,
so that only a file's last piece may have a rest."""
MEDIA_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class EmbeddedFile:
    """A file of a place, as a value in JSON: a text, its base64."""

    store: ObjectStore
    name: str
    size_bytes: int

    @classmethod
    async def of(cls, store: ObjectStore, name: str) -> EmbeddedFile:
        """Find a file. Raises NotFound, ObjectStoreUnavailable."""
        return cls(store, name, (await store.metadata(name)).size_bytes)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Read it, and write it as base64. Raises NotFound, ObjectStoreUnavailable."""
        _, chunks = await self.store.open(self.name)
        rest = b""
        async for chunk in chunks(0, self.size_bytes):
            at = 0
            while at + CHUNK_BYTES <= len(rest) + len(chunk):
                stop = at + CHUNK_BYTES - len(rest)
                text = base64.b64encode(rest + chunk[at:stop])
                rest, at = b"", stop  # before the reader is waited for, who may take long
                yield text
            rest += chunk[at:]
        yield base64.b64encode(rest)


class JsonStream:
    """JSON with some `Inline` among its values, to be gone through once; `before` and `after` stand around it."""

    def __init__(self, content: object, before: str = "", after: str = "", **options: Any) -> None:  # noqa: ANN401
        self.files: list[EmbeddedFile] = []
        mark = secrets.token_hex(16)  # nobody can have written it into the rest

        def marked(value: object) -> str:
            assert isinstance(value, EmbeddedFile), f"{type(value).__name__} is no JSON"
            self.files.append(value)
            return mark

        text = json.dumps(content, default=marked, **options)
        self.texts = [each.encode() for each in f"{before}{text}{after}".split(mark)]

    @property
    def size_bytes(self) -> int:
        """How long it is."""
        return sum(map(len, self.texts)) + sum(4 * -(-file.size_bytes // 3) for file in self.files)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the pieces, each of PIECE_BYTES but the texts. Raises NotFound, ObjectStoreUnavailable."""
        first, *others = self.texts
        yield first
        for file, text in zip(self.files, others, strict=True):
            async for piece in file.pieces():
                yield piece
            yield text


async def json_response(content: object, headers: Mapping[str, str] | None = None) -> Response:
    """Answer 200 with JSON, the same bytes as of a JSONResponse.

    The first file's begin is read before this returns: what cannot be read is an error, and not half an answer. Raises
    NotFound, ObjectStoreUnavailable.
    """
    body = JsonStream(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if not body.files:
        return Response(body.texts[0], headers=headers, media_type=MEDIA_TYPE)
    pieces = aiter(body)
    begun = [await anext(pieces), await anext(pieces)]
    length = {"Content-Length": str(body.size_bytes)}
    return StreamingResponse(_whole(begun, pieces), headers=dict(headers or {}) | length, media_type=MEDIA_TYPE)


async def _whole(begun: list[bytes], pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while begun:
        yield begun.pop(0)
    async for piece in pieces:
        yield piece
