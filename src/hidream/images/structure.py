"""Limits on the structure of an image file, checked before it is decoded: chunks, scans, frames and metadata.

A decoder's work grows with these, not with the file's size: a JPEG of 171 KB may have 400 scans of 8192² pixels. The
limits are far above what encoders write. The checks only follow the lengths in the file and read no pixels. If a file
is damaged, they end without an error, and the decoder reports the damage.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from hidream.errors import InvalidInput
from hidream.types import ImageFormat, check_file

ACCEPTED = "accepted: a PNG, JPEG or WebP file"

CHUNKS_MAX = 2**16
"""Chunks of a PNG or WebP file: 64 MiB in PNG chunks of 1 KiB. libpng writes 8 KiB, so an upload has thousands."""
SEGMENTS_MAX = 4096
"""Segments of a JPEG file, without restart markers: a colour profile has up to 255, a scan some, XMP one per 64 KiB"""
SCANS_MAX, SCAN_PIXELS_MAX = 64, 2**31
"""Scans of a progressive JPEG: libjpeg-turbo and jpegtran write 10; mozjpeg tries 64 and writes at most 20. Each scan
takes time for every pixel, so an image of 8192² may have at most 32."""
FRAMES_MAX = 1000
"""Frames of an animation, of which only the first is decoded."""
METADATA_BYTES_MAX = 2**23
"""The total size of texts, EXIF, XMP and colour profiles in the file."""
PROFILE_BYTES_MAX = 2**22
"""An ICC profile: those of printing presses have 0.5 to 3 MB."""
INFLATED_BYTES_MAX = 2**24
"""The total decompressed size of a PNG's texts and profile."""
DIRECTORIES_MAX, ENTRIES_MAX, VALUES_BYTES_MAX = 32, 4096, 2**21
"""Limits of EXIF data: a camera writes 5 directories with 100 entries in all; a JPEG file has room for 64 KiB."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"fdAT", b"fcTL", b"IEND")
"""PNG chunks that make up the image; all others are metadata."""
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
"""The next marker of a JPEG file, other than fill bytes, escaped bytes of pixels and restart markers."""
_STANDALONE = (0x01, 0xD8)
_END, _SCAN, _COMMENT = 0xD9, 0xDA, 0xFE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Start-of-frame markers, which have the size; the three excluded ones are tables."""
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Bytes of a value, by the number of its TIFF type."""
_DIRECTORIES = (0x8769, 0x8825, 0xA005)
"""EXIF tags whose value is the offset of another directory: camera, GPS, interoperability."""


def check(field: str, data: bytes) -> ImageFormat:
    """Return a file's format. Raises InvalidInput, which names `field`, for other formats and above the limits."""
    if data.startswith(_PNG_SIGNATURE):
        _check_png(field, data)
        return ImageFormat.PNG
    if data.startswith(b"\xff\xd8\xff"):
        _check_jpeg(field, data)
        return ImageFormat.JPEG
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_webp(field, data)
        return ImageFormat.WEBP
    raise InvalidInput(f"{field} is not an image that can be read ({len(data):,} bytes); {ACCEPTED}")


def check_exif(field: str, data: bytes) -> None:
    """Check the limits of EXIF data; damaged data is ignored. Raises InvalidInput."""
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return
    if data[2:4] in (b"+\0", b"\0+"):
        raise InvalidInput(f"{field} has EXIF data in BigTIFF format; accepted: TIFF, as the standard of EXIF requires")
    at, entries, size = [struct.unpack_from(order + "I", data, 4)[0]], 0, 0
    for directories in range(1, DIRECTORIES_MAX + 2):
        if not at:
            return
        _at_most(f"{field} has EXIF data with too many directories, or a cycle of them", directories, DIRECTORIES_MAX)
        found = list(_directory(order, data, at))
        entries, size = entries + len(found), size + sum(found)
        _at_most(f"{field} has EXIF data of {entries:,} entries", entries, ENTRIES_MAX)
        _at_most(f"{field} has EXIF data of {size:,} bytes in values", size, VALUES_BYTES_MAX)


def _directory(order: str, data: bytes, at: list[int]) -> Iterator[int]:
    """Yield the bytes of each entry's value. Pops the directory's offset from `at`, and appends those it names."""
    start = at.pop()
    if start + 2 > len(data):
        return
    (count,) = struct.unpack_from(order + "H", data, start)
    there = min(count, (len(data) - start - 2) // 12, ENTRIES_MAX + 1)
    for i in range(there):
        tag, kind, values, where = struct.unpack_from(order + "HHII", data, start + 2 + 12 * i)
        if tag in _DIRECTORIES:
            at.append(where)
        size = values * _VALUE_BYTES.get(kind, 1)
        yield min(size, max(0, len(data) - where)) if size > 4 else size
    after = start + 2 + 12 * count
    if there == count and after + 4 <= len(data):
        (following,) = struct.unpack_from(order + "I", data, after)
        at += [following] if following else []


class _Metadata:
    """The metadata of a file, counted as it is found. The methods raise InvalidInput above a limit."""

    def __init__(self, field: str) -> None:
        self._field, self._size, self._profile, self._inflated, self._frames = field, 0, 0, 0, 0

    def add(self, size: int) -> None:
        """Count bytes of metadata."""
        self._size += size
        message = f"{self._field} has {self._size:,} bytes of texts, EXIF, XMP and profiles"
        _at_most(message, self._size, METADATA_BYTES_MAX)

    def profile(self, size: int) -> None:
        """Count bytes of a colour profile, which may come in parts."""
        self._profile += size
        _at_most(f"{self._field} has a colour profile of {self._profile:,} bytes", self._profile, PROFILE_BYTES_MAX)

    def frame(self) -> None:
        """Count a frame of an animation."""
        self._frames += 1
        _at_most(f"{self._field} has {self._frames:,} frames or more", self._frames, FRAMES_MAX)

    def inflate(self, compressed: bytes) -> int:
        """Decompress up to the limit, count the bytes, and return their number."""
        try:
            left = INFLATED_BYTES_MAX - self._inflated + 1
            size = len(zlib.decompressobj().decompress(compressed, left))
        except zlib.error:
            return 0
        self._inflated += size
        message = f"{self._field} has compressed texts that decompress to more bytes"
        _at_most(message, self._inflated, INFLATED_BYTES_MAX)
        return size


def _check_png(field: str, data: bytes) -> None:
    if data[12:16] == b"IHDR" and len(data) >= 24:
        check_file(field, *struct.unpack_from(">II", data, 16))
    at, count, metadata = len(_PNG_SIGNATURE), 0, _Metadata(field)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        count += 1
        _at_most(f"{field} has {count:,} chunks or more", count, CHUNKS_MAX)
        if kind not in _PIXELS:
            _check_text(field, kind, data[at + 8 : at + 8 + length], metadata)
        elif kind == b"fcTL":
            metadata.frame()
        elif kind == b"IEND":
            return
        at += length + 12


def _check_text(field: str, kind: bytes, body: bytes, metadata: _Metadata) -> None:
    """Check a PNG chunk that is metadata."""
    metadata.add(len(body))
    if kind == b"eXIf":
        check_exif(field, body)
    _, _, rest = body.partition(b"\0")
    if kind in (b"zTXt", b"iCCP"):
        size = metadata.inflate(rest[1:])
        if kind == b"iCCP":
            metadata.profile(size)
    elif kind == b"iTXt" and rest[:1] == b"\1":
        metadata.inflate(b"\0".join(rest[2:].split(b"\0", 2)[2:]))


def _check_jpeg(field: str, data: bytes) -> None:
    at, segments, scans, scans_max, metadata, exif = 2, 0, 0, SCANS_MAX, _Metadata(field), b""
    while (found := _MARKER.search(data, at)) and found[1][0] != _END:
        at, marker = found.end(), found[1][0]
        segments += 1
        _at_most(f"{field} has {segments:,} segments or more", segments, SEGMENTS_MAX)
        if marker in _STANDALONE or at + 2 > len(data):
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if marker in _FRAMES and at + 7 <= len(data):
            height, width = struct.unpack_from(">HH", data, at + 3)
            check_file(field, width, height)
            scans_max = min(scans_max, SCAN_PIXELS_MAX // max(1, width * height))
        elif marker == _SCAN:
            scans += 1
            _at_most(f"{field} has {scans:,} scans or more, too many for its size", scans, scans_max)
        elif marker == _COMMENT or 0xE0 <= marker <= 0xEF:
            exif += _check_application(field, data[at + 2 : at + length], metadata)
        at += max(2, length)
    check_exif(field, exif)


def _check_application(field: str, body: bytes, metadata: _Metadata) -> bytes:
    """Check a JPEG segment that is metadata; return its EXIF data, which may continue in the next segment."""
    metadata.add(len(body))
    if body.startswith(b"ICC_PROFILE\0"):
        metadata.profile(len(body))
    elif body.startswith(b"MPF\0"):  # the offsets of a phone's further images, in the format of EXIF data
        check_exif(field, body[4:])
    return body[6:] if body.startswith(b"Exif\0\0") else b""


def _check_webp(field: str, data: bytes) -> None:
    at, count, metadata = 12, 0, _Metadata(field)
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        body = at + 8
        count += 1
        _at_most(f"{field} has {count:,} chunks or more", count, CHUNKS_MAX)
        if size := _webp_size(kind, data[body : body + 10]):
            check_file(field, *size)
        if kind == b"ANMF":
            metadata.frame()
        elif kind not in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM"):
            metadata.add(min(length, len(data) - body))
            if kind == b"ICCP":
                metadata.profile(length)
            elif kind == b"EXIF":
                check_exif(field, data[body : body + length])
        at = body + length + length % 2


def _webp_size(kind: bytes, head: bytes) -> tuple[int, int] | None:
    """Read width and height where a chunk has them (RFC 9649; VP8: RFC 6386, section 9.1)."""
    if len(head) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L" and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 6)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _at_most(message: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidInput(f"{message}; accepted: up to {most:,}")
