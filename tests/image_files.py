"""Image files made by hand, as Pillow does not write them: PNGs of any depth, and ICC profiles."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

Chunks = dict[bytes, bytes]
D50 = (0.9642, 1.0, 0.8249)
P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
"""Display P3's red, green and blue as XYZ adapted to D50 (ICC registry, "Display P3")."""
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
"""Adobe RGB (1998) specification, annex C, "ICC profile"."""


def saved(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def noise(width: int, height: int) -> Image.Image:
    """Colours by chance, always the same."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def raw_png(
    kind: int, depth: int, row: bytes, size: tuple[int, int], chunks: dict[bytes, bytes] | None = None
) -> bytes:
    """A PNG whose rows all have the same bytes; `kind` is its colour type."""
    width, height = size
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = zlib.compress((b"\0" + row) * height)
    parts = [(b"IHDR", header), *(chunks or {}).items(), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def progressive_jpeg(side: int, scans: int) -> bytes:
    """A grey JPEG that says its last scan again and again."""
    file = saved(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = file.rindex(b"\xff\xda")
    scan, there = file[last:-2], file.count(b"\xff\xda")
    return file[:-2] + scan * (scans - there) + file[-2:]


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP file of these chunks."""
    body = b"".join(name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def rgb_profile(primaries: tuple[tuple[float, float, float], ...], curve: bytes) -> bytes:
    """An ICC profile of three primaries and one curve: for Display P3 sRGB's, for Adobe RGB a gamma."""
    colours = {name: _xyz(xyz) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return _profile(b"RGB ", colours | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def grey_profile(curve: bytes) -> bytes:
    return _profile(b"GRAY", {b"kTRC": curve})


def cmyk_profile() -> bytes:
    """A profile of 2⁴ colours: ink takes its share of the light away, in Lab as far as lightness and neutrality go."""
    table = b""
    for node in range(16):
        c, m, y, k = (node >> shift & 1 for shift in (3, 2, 1, 0))
        lightness = round(255 * (1 - max(k, (c + m + y) / 3)))
        table += bytes((lightness, 128, 128))
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + identity * 4 + table + identity * 3
    return _profile(b"CMYK", {b"A2B0": lut}, space=b"Lab ", kind=b"prtr")


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def srgb_curve() -> bytes:
    curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return b"para\0\0\0\0" + struct.pack(">HH5i", 3, 0, *(round(value * 65536) for value in curve))


def _xyz(xyz: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in xyz))


def _profile(colours: bytes, tags: dict[bytes, bytes], space: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    name = b"a test's"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + b"\0" * 79,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": _xyz(D50),
        **tags,
    }
    offset, table, bodies = 128 + 4 + 12 * len(tags), b"", b""
    for tag, body in tags.items():
        table += tag + struct.pack(">II", offset + len(bodies), len(body))
        bodies += body + b"\0" * (-len(body) % 4)
    size = offset + len(bodies)
    header = struct.pack(">I4sI4s4s4s12s4s", size, b"\0" * 4, 0x02400000, kind, colours, space, b"\0" * 12, b"acsp")
    header += b"\0" * 28 + struct.pack(">3i", *(round(value * 65536) for value in D50))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + bodies
