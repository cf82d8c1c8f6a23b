"""JSON as it comes in, piece by piece: its long texts go to files, and what is left of it is short.

All that is legitimately long in a request is an image in base64. The rest is parsed at once, and so it may not be
long: a megabyte of small values costs the event loop 100 ms, a megabyte of one text 5.
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
"""A text up to here stays in the JSON: more than the longest prompt, each of its characters escaped, has (120,000)."""
REST_MAX_BYTES = 2 * LONG_BYTES + 16_384
"""Two such texts, and all the numbers of a request."""
VALUES_MAX, NESTED_MAX = 5000, 1000
"""Values beside them, and lists and objects of these: the longest list that a request may have is of 500."""
TEXTS_MAX = 4
"""Longer texts: an image and a mask, and two that nothing is done with; each has a file open."""
HEAD_CHARS = 100
"""What errors show of a text."""

_TEXT = re.compile(rb'(?:[^"\\]++|\\(?:u[0-9A-Fa-f]{4}|[^u]))*+', re.DOTALL)
"""The inside of a JSON string, as far as it is whole."""
_ESCAPE_BYTES = 6
_VALUE = re.compile(rb":[ \t\r\n]{0,1000}\Z")
_CONTROL = bytes(range(32))


class LongText(OverlongText):
    """A text of a JSON object that lies in a file, in ASCII."""

    def __init__(self, part: Part, holding: AsyncExitStack) -> None:
        self.path = part.path
        self.head = ""
        self._part, self._holding = part, holding
        self._hash = hashlib.sha256()

    def __repr__(self) -> str:
        return repr(self.head)

    @property
    def size(self) -> int:
        """How many characters it has."""
        return self._part.size_bytes

    async def add(self, data: bytes) -> None:
        """Append. Raises ObjectStoreUnavailable."""
        if len(self.head) < HEAD_CHARS:
            self.head += data[:HEAD_CHARS].decode("ascii")
        self._hash.update(data)
        await self._part.write(data)

    async def end(self) -> None:
        """Let it be read from its file. Raises ObjectStoreUnavailable."""
        await self._part.flush()

    async def close(self) -> None:
        """Remove the file before the request has ended."""
        await self._holding.aclose()

    def digest(self) -> dict[str, str]:
        """Stand for the text in a digest of its request."""
        return {"sha256": self._hash.hexdigest()}


class Splitter:
    """Reads one JSON object; `new` gives a file for each long text.

    Raises ValueError on what is not JSON, BodyTooLarge on what is long without such texts, or has too many of them.
    """

    def __init__(self, new: Callable[[], Awaitable[LongText]]) -> None:
        self.texts: list[LongText] = []
        self._new = new
        self._name = secrets.token_hex(16)  # what no client can write
        self._rest = bytearray()
        self._values = self._nested = 0
        self._carry = b""  # of an escape that the next piece ends
        self._begin: int | None = None  # where the text that is being read begins in the rest
        self._text: LongText | None = None  # the long one that is being read

    async def feed(self, piece: bytes) -> None:
        """Read on."""
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
        """Parse what was read, long texts in their places."""
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
        """Read a text as far as it goes; returns where that is."""
        found = _TEXT.match(data, at)
        assert found, "it matches nothing, too"
        await self._add(found[0])
        end = found.end()
        if end == len(data):
            return end
        if data[end : end + 1] == b'"':
            self._end()
            return end + 1
        if len(data) - end >= _ESCAPE_BYTES:
            raise ValueError("it has an escape that JSON has not")
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
    """Refuse NaN and the infinities, which Python's parser takes."""
    raise ValueError(f"{name} is not a JSON value")


def _plain(piece: bytes) -> bytes:
    """Read whole escapes of a piece of a JSON string; it may have nothing but ASCII. Raises ValueError."""
    if not piece.isascii() or len(piece.translate(None, _CONTROL)) < len(piece):
        raise ValueError(f"a text of over {LONG_BYTES} bytes has other characters than printable ASCII")
    if b"\\" not in piece:
        return piece
    text = json.loads(b'"' + piece + b'"')
    if not text.isascii():
        raise ValueError(f"a text of over {LONG_BYTES} bytes has other characters than ASCII")
    return str(text).encode("ascii")
