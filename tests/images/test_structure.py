"""What is counted in a file before it is decoded, and that no bytes raise any other error."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from hidream.errors import InvalidInput
from hidream.images.image_file import UNTRUSTED_FORMATS, exif_of
from hidream.images.measure import identify, oriented_size
from hidream.images.prepared import prepare
from hidream.images.structure import check, check_exif
from hidream.types import ImageFormat, Size
from image_files import P3, noise, progressive_jpeg, raw_png, rgb_profile, saved, srgb_curve, webp

RED = Image.new("RGB", (8, 8), "red")


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(*chunks: bytes) -> bytes:
    """A PNG with these chunks before its pixels."""
    file = saved(RED)
    return file[:33] + b"".join(chunks) + file[33:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpeg(*segments: bytes) -> bytes:
    """A JPEG with these segments before all others."""
    file = saved(RED, "JPEG")
    return file[:2] + b"".join(segments) + file[2:]


def exif(*directories: list[tuple[int, int, int, int]], after: int | None = None) -> bytes:
    """EXIF data of directories that follow one another, each of entries (tag, type, count, value)."""
    data = b"II*\0\x08\0\0\0"
    for i, entries in enumerate(directories):
        following = len(data) + 2 + 12 * len(entries) + 4
        last = i == len(directories) - 1
        data += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        data += struct.pack("<I", (after or 0) if last else following)
    return data


# --- what is accepted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_what_encoders_write_is_accepted(kind):
    profile, tags = rgb_profile(P3, srgb_curve()), Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    photo = noise(640, 480)
    progressive = {"progressive": True} if kind == "JPEG" else {}
    file = saved(photo, kind, icc_profile=profile, exif=tags, **progressive)
    assert check("image", file) == identify("image", file) == ImageFormat(kind.lower())


def test_telephones_and_animations_are_accepted():
    frames = [Image.new("RGB", (32, 32), (i, 0, 0)) for i in range(60)]
    for kind, image_format in (("MPO", "jpeg"), ("PNG", "png"), ("WEBP", "webp")):
        assert check("image", saved(frames[0], kind, save_all=True, append_images=frames[1:])) == image_format


@pytest.mark.parametrize("data", [b"", b"hello", b"GIF89a", b"II*\0", b"\x89PNG", b"RIFF\0\0\0\0WAVE", b"\xff\xd8"])
def test_other_formats_are_told_by_their_length(data):
    with pytest.raises(
        InvalidInput, match=r"^mask is not an image that can be read \(\d+ bytes\); accepted: a PNG, JPEG"
    ):
        check("mask", data)


# --- what is too much ------------------------------------------------------------------------------------------------

PROFILE = segment(0xE2, b"ICC_PROFILE\0" + bytes(65_000))
TOO_MUCH = {
    "65 scans or more": lambda: progressive_jpeg(64, 65),
    "33 scans or more, too many for its size": lambda: progressive_jpeg(8192, 33),
    "4,097 segments": lambda: jpeg(segment(0xFE, b"a") * 4097),
    "bytes of texts, EXIF, XMP and profiles": lambda: jpeg(segment(0xE1, bytes(65_000)) * 130),
    "a colour profile of 4,2": lambda: jpeg(PROFILE * 65),
    "65,537 chunks": lambda: png(chunk(b"abCd", b"") * 65_540),
    "8,388,613 bytes of texts": lambda: png(chunk(b"tEXt", b"key\0" + b"x" * (2**23 + 1))),
    "compressed texts": lambda: png(chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(2**25)))),
    "compressed texts that": lambda: png(chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(bytes(2**25)))),
    "a colour profile of 5,000,000": lambda: png(chunk(b"iCCP", b"key\0\0" + zlib.compress(bytes(5_000_000)))),
    "1,001 frames": lambda: png(chunk(b"fcTL", bytes(26)) * 1001),
    "1,001 frames or": lambda: webp(*[(b"ANMF", bytes(16))] * 1001),
    "65,537 chunks or": lambda: webp(*[(b"VP8 ", b"")] * 65_537),
    "a colour profile of 4,194,305": lambda: webp((b"ICCP", bytes(2**22 + 1))),
    "9000*9000 pixels": lambda: raw_png(0, 8, b"", (9000, 9000)),
    "16384*16384 pixels": lambda: webp((b"VP8X", bytes(4) + b"\xff\x3f\0" * 2)),
    "16383*16383 pixels": lambda: webp((b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383))),
    "16384*16384": lambda: webp((b"VP8L", b"\x2f" + b"\xff" * 4 + bytes(5))),
    "65535*65535 pixels": lambda: jpeg(segment(0xC0, struct.pack(">BHHB", 8, 65535, 65535, 1))),
}


@pytest.mark.parametrize("said", TOO_MUCH)
def test_too_much_is_refused_by_its_number(said):
    with pytest.raises(InvalidInput, match=r"^image has .*; accepted: ") as caught:
        check("image", TOO_MUCH[said]())
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (exif([(0x8769, 4, 1, 8)]), "too many directories, or a cycle of them"),
        (exif([(1, 3, 1, 0)], after=8), "too many directories, or a cycle of them"),
        (exif(*[[(1, 3, 1, 0)]] * 33), "too many directories"),
        (exif([(1, 3, 1, 0)] * 4097), "4,097 entries"),
        (exif([(i, 7, 2**20, 8) for i in range(3000)]), "bytes in values"),
        (b"MM\0+" + bytes(20), "EXIF data in BigTIFF format"),
    ],
)
@pytest.mark.parametrize("kind", UNTRUSTED_FORMATS)
def test_exif_data_that_would_take_long_are_refused(data, said, kind):
    with pytest.raises(InvalidInput, match=r"^mask has EXIF data .*; accepted: ") as caught:
        check_exif("mask", data)
    assert said in str(caught.value)
    if len(data) < 60_000:
        with pytest.raises(InvalidInput, match=said):
            check("mask", saved(RED, kind, exif=b"Exif\0\0" + data))


def test_exif_data_that_imagemagick_writes_as_text_are_checked_too():
    data = exif([(1, 3, 1, 0)], after=8).hex()
    image = Image.open(io.BytesIO(png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  26\n" + data.encode()))))
    with pytest.raises(InvalidInput, match="a cycle of them"):
        check_exif("image", exif_of(image))


def test_so_are_directories_of_a_telephones_further_images():
    with pytest.raises(InvalidInput, match="a cycle of them"):
        check("image", jpeg(segment(0xE2, b"MPF\0" + exif([(1, 3, 1, 0)], after=8))))


@pytest.mark.parametrize(
    "data", [b"", b"II*\0", b"II*\0\xff\xff\0\0", exif([(1, 3, 1, 0)])[:-9], b"Exif\0\0MM\0*\0\0\0\x08\0"]
)
def test_damaged_exif_data_are_passed_over(data):
    check_exif("image", data)


# --- any bytes at all ------------------------------------------------------------------------------------------------


def samples() -> list[bytes]:
    """Small files with everything in them that is walked."""
    profile, tags = rgb_profile(P3, srgb_curve()), Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] = 0.5
    grain = noise(24, 16)
    beside = {"icc_profile": profile, "exif": tags}
    frames = {"save_all": True, "append_images": [grain.rotate(90)]}
    return [
        saved(grain.convert("RGBA"), **beside),
        saved(grain.quantize(4), transparency=1),
        saved(grain.convert("L").convert("I").convert("I;16")),
        saved(grain, "PNG", **frames),
        png(
            chunk(b"zTXt", b"key\0\0" + zlib.compress(b"a text")), chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"b"))
        ),
        saved(grain, "JPEG", progressive=True, xmp=b"<x/>", comment=b"hello", **beside),
        saved(grain.convert("CMYK"), "JPEG", **beside),
        saved(grain, "MPO", **frames),
        saved(grain.convert("RGBA"), "WEBP", xmp=b"<x/>", **beside),
        saved(grain, "WEBP", lossless=True, **frames),
    ]


SAMPLES = samples()
NUMBERS = st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x80", bytes(4), b"\xff" * 4, b"\xff\xda", b"\xff\xd8"])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A real file with some bytes of it overwritten, cut out, said twice, or cut off."""
    data = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 12))
        match draw(st.sampled_from(["write", "cut", "again", "end"])):
            case "write":
                new = draw(NUMBERS | st.binary(min_size=1, max_size=4))
                data[at : at + len(new)] = new
            case "cut":
                del data[at : at + length]
            case "again":
                data[at:at] = data[at : at + 8 * length]
            case "end":
                del data[at + draw(st.integers(0, 200)) :]
    return bytes(data)


def only_refused(data: bytes) -> None:
    """Whatever reads a file may refuse it, and raise nothing else."""
    for read in (
        lambda: check("image", data),
        lambda: check_exif("image", data),
        lambda: identify("image", data),
        lambda: oriented_size("image", data),
        lambda: prepare([Size(16, 16)], data, data, UNTRUSTED_FORMATS),
    ):
        try:
            read()
        except InvalidInput as error:
            assert "; accepted: " in str(error)  # noqa: PT017


@pytest.mark.filterwarnings("ignore")
@given(damaged() | st.binary(max_size=200))
def test_damaged_files_are_read_or_refused(data):
    only_refused(data)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60_000)
@given(damaged())
def test_tens_of_thousands_of_damaged_files_are_read_or_refused(data):
    only_refused(data)
