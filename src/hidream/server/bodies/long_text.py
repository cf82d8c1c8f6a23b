"""A JSON parser for bodies that are received in pieces: long texts go to files, and the rest must be short.

The only long values of a valid request are images in base64. The rest is parsed in one go, so it must be short: a
megabyte of small values blocks the event loop for 100 ms, a megabyte of one text for 5 ms.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from hidream.errors import BodyTooLarge
from hidream.outputs.part import Part
from hidream.parameter import OverlongText

LONG_BYTES = 131_072
"""A text up to this length stays in the JSON: the longest prompt with each character escaped has 120,000 bytes."""
REST_MAX_BYTES = 2 * LONG_BYTES + 16_384
"""The size of the rest: two texts of that length, and all other values of a request."""
VALUES_MAX, NESTED_MAX = 5000, 1000
"""The number of values, and of lists and objects; the longest list of a valid request has 500 values."""
TEXTS_MAX = 4
"""The number of long texts: an image, a mask, and two unknown parameters. Each has an open file."""
HEAD_CHARS = 100
"""How many characters of a text errors show."""

_TEXT = re.compile(rb'(?:[^"\\]++|\\(?:u[0-9A-Fa-f]{4}|[^u]))*+', re.DOTALL)
"""The contents of a JSON string, up to an incomplete escape."""
_ESCAPE_BYTES = 6
_VALUE = re.compile(rb":[ \t\r\n]{0,1000}\Z")
_CONTROL = bytes(range(32))


class LongText(OverlongText):
    """A long text of a JSON object, stored in a file as ASCII."""

    def __init__(self, part: Part, holding: AsyncExitStack) -> None:
        self.path = part.path
        self.head = ""
        self._part, self._holding = part, holding
        self._hash = hashlib.sha256()

    def __repr__(self) -> str:
        return repr(self.head)

    @property
    def size(self) -> int:
        """The number of characters."""
        return self._part.size_bytes

    async def add(self, data: bytes) -> None:
        """Append. Raises ObjectStoreUnavailable."""
        if len(self.head) < HEAD_CHARS:
            self.head += data[:HEAD_CHARS].decode("ascii")
        self._hash.update(data)
        await self._part.write(data)

    async def end(self) -> None:
        """Flush the file, so that it can be read. Raises ObjectStoreUnavailable."""
        await self._part.flush()

    async def close(self) -> None:
        """Remove the file before the request has ended."""
        await self._holding.aclose()

    def digest(self) -> dict[str, str]:
        """Return what stands for the text in the digest of its request."""
        return {"sha256": self._hash.hexdigest()}


class Splitter:
    """Parses one JSON object; `new` creates a LongText for each long text.

    Raises ValueError if it is not JSON, and BodyTooLarge if the rest is too long or there are too many long texts.
    """

    def __init__(self, new: Callable[[], Awaitable[LongText]]) -> None:
        self.texts: list[LongText] = []
        self._new = new
        self._name = secrets.token_hex(16)  # a placeholder that no client can guess
        self._rest = bytearray()
        self._values = self._nested = 0
        self._carry = b""  # the start of an escape that the next piece completes
        self._begin: int | None = None  # where the current text begins in the rest; None outside texts
        self._text: LongText | None = None  # the current text, if it is long

    async def feed(self, piece: bytes) -> None:
        """Parse the next piece."""
        data, self._carry = self._carry + piece, b""
        at = 0
        while at < len(data):
            at = self._outside(data, at) if self._begin is None else await self._inside(data, at)
            if len(self._rest) > REST_MAX_BYTES:
                raise BodyTooLarge(
                    f"the body has more than {REST_MAX_BYTES} bytes beside texts of over {LONG_BYTES}, which only "
                    "images are; accepted: less"
                )

    async def value(self) -> Any:  # noqa: ANN401 - what JSON says
        """Return the parsed value, with the long texts in their places."""
        if self._text is not None or self._carry:
            raise ValueError("it ends within a text")
        for text in self.texts:
            await text.end()
        return json.loads(self._rest, parse_constant=refuse_constant, object_hook=self._found if self.texts else None)

    def _outside(self, data: bytes, at: int) -> int:
        quote = data.find(b'"', at)
        end = len(data) if quote < 0 else quote + 1
        outside = data[at:end]
        self._rest += outside
        self._nested += outside.count(b"[") + outside.count(b"{")
        if self._nested > NESTED_MAX:
            raise ValueError(f"it has more than {NESTED_MAX} lists and objects")
        self._values += outside.count(b",")
        if self._values > VALUES_MAX:
            raise BodyTooLarge(f"the body has more than {VALUES_MAX} values; accepted: less")
        if quote >= 0:
            self._begin = len(self._rest)
        return end

    async def _inside(self, data: bytes, at: int) -> int:
        """Read the current text up to its end or the end of the data; return the position after it."""
        found = _TEXT.match(data, at)
        assert found, "the expression also matches the empty string"
        await self._add(found[0])
        end = found.end()
        if end == len(data):
            return end
        if data[end : end + 1] == b'"':
            self._end()
            return end + 1
        if len(data) - end >= _ESCAPE_BYTES:
            raise ValueError("it has an escape that JSON does not have")
        self._carry = data[end:]
        return len(data)

    async def _add(self, piece: bytes) -> None:
        if self._text is not None:
            await self._text.add(_plain(piece))
            return
        assert self._begin is not None, "this is within a text"
        self._rest += piece
        if len(self._rest) - self._begin <= LONG_BYTES or not _VALUE.search(self._rest, 0, self._begin - 1):
            return
        if len(self.texts) == TEXTS_MAX:
            raise BodyTooLarge(
                f"the body has more than {TEXTS_MAX} texts of over {LONG_BYTES} bytes, which only images are; "
                f"accepted: up to {TEXTS_MAX}"
            )
        self._text = await self._new()
        self.texts.append(self._text)
        begun = bytes(self._rest[self._begin :])
        del self._rest[self._begin - 1 :]
        await self._text.add(_plain(begun))

    def _end(self) -> None:
        if self._text is None:
            self._rest += b'"'
        else:
            self._rest += json.dumps({self._name: len(self.texts) - 1}).encode("ascii")
        self._begin = self._text = None

    def _found(self, value: dict[str, Any]) -> object:
        return self.texts[value[self._name]] if self._name in value else value


def refuse_constant(name: str) -> None:
    """Refuse NaN and the infinities, which Python's parser accepts."""
    raise ValueError(f"{name} is not a JSON value")


def _plain(piece: bytes) -> bytes:
    """Decode the escapes of a piece of a JSON string, which must be printable ASCII. Raises ValueError."""
    if not piece.isascii() or len(piece.translate(None, _CONTROL)) < len(piece):
        raise ValueError(f"a text of over {LONG_BYTES} bytes has other characters than printable ASCII")
    if b"\\" not in piece:
        return piece
    text = json.loads(b'"' + piece + b'"')
    if not text.isascii():
        raise ValueError(f"a text of over {LONG_BYTES} bytes has other characters than ASCII")
    return str(text).encode("ascii")
