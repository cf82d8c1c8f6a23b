"""A decoder for files in a text: base64 or a data: URI of it.

Both alphabets of RFC 4648 are accepted, with or without padding and line breaks. The text is read and the file is
written in pieces, so that neither is in memory as a whole.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from hidream.errors import InvalidInput

PIECE_CHARS = 65_536
ACCEPTED = (
    "accepted: an http(s) URL, a data: URI or base64 of a PNG, JPEG or WebP file, or the download_url of an upload"
)
_URL_SAFE = str.maketrans("-_", "+/")
"""The other alphabet of base64 (RFC 4648, section 5)."""
_NO_DIGIT = re.compile("[^A-Za-z0-9+/]")
_DATA = re.compile(r"\s*data:[\w.+/;=-]{0,256}?;base64,", re.ASCII | re.IGNORECASE)
_HALF_ESCAPE = re.compile("%[0-9A-Fa-f]?\\Z")


def pieces_of(path: Path) -> Iterator[str]:
    """Read an ASCII text from its file."""
    with path.open(encoding="ascii") as file:
        while piece := file.read(PIECE_CHARS):
            yield piece


def decode(field: str, shown: str, pieces: Iterable[str], write: Callable[[bytes], None], max_bytes: int) -> None:
    """Decode a text and `write` the bytes. `shown` is the quoted beginning of the text. Raises InvalidInput."""
    digits, written, seen, padding = "", 0, 0, -1
    for text, skipped in _unescaped(field, shown, pieces):
        seen += skipped
        found = "".join(text.split()).translate(_URL_SAFE)
        bare = found.rstrip("=")
        if padding >= 0 and bare:
            raise _no_digit(field, shown, "=", padding)
        if bad := _NO_DIGIT.search(bare):
            raise _no_digit(field, shown, bad[0], seen + text.translate(_URL_SAFE).index(bad[0]))
        if padding < 0 and len(bare) < len(found):
            padding = seen + text.index("=")
        seen += len(text)
        digits += bare
        whole = len(digits) // 4 * 4
        data, digits = base64.b64decode(digits[:whole]), digits[whole:]
        written += len(data)
        if written <= max_bytes:  # beyond the limit, bytes are only counted
            write(data)
    if len(digits) == 1:
        total = written // 3 * 4 + 1
        raise InvalidInput(f"{field} ends within a byte, after {total} digits of base64; {ACCEPTED}")
    last = base64.b64decode(digits + "=" * (-len(digits) % 4))
    if written + len(last) > max_bytes:
        raise InvalidInput(f"{field} has {written + len(last)} bytes; accepted: up to {max_bytes}")
    write(last)


def _unescaped(field: str, shown: str, pieces: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Remove the prefix of a data: URI and decode its escapes; yield each piece and how much was removed before it."""
    first, carry, is_uri = True, "", False
    for piece in pieces:
        prefix = _DATA.match(piece) if first else None
        if first and not prefix and piece.lstrip()[:5].lower() == "data:":
            raise InvalidInput(f"{field} is {shown:.60}, a data: URI without ;base64 before its comma; {ACCEPTED}")
        is_uri = is_uri or prefix is not None
        skipped = prefix.end() if prefix else 0
        text, carry, first = carry + piece[skipped:], "", False
        if is_uri and (half := _HALF_ESCAPE.search(text)):
            text, carry = text[: half.start()], half[0]
        yield (unquote(text) if is_uri else text), skipped
    if carry:
        yield carry, 0


def _no_digit(field: str, shown: str, character: str, place: int) -> InvalidInput:
    return InvalidInput(f"{field} is {shown:.60}, with {character!r} at {place}: not base64; {ACCEPTED}")
