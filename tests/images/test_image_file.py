"""Image files of every mode and depth, with transparency, colour profiles, orientation, and damage."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image

from hidream.errors import InvalidInput
from hidream.images.image_file import open_image, srgb
from image_files import (
    ADOBE_RGB,
    P3,
    cmyk_profile,
    gamma,
    grey_profile,
    raw_png,
    rgb_profile,
    saved,
    srgb_curve,
)

RED = (200, 60, 40)
OUR_P3 = rgb_profile(P3, srgb_curve())


def colours(data: bytes) -> np.ndarray:
    """What a file shows, [H, W, 3]; it has to be shown without a word."""
    image, warnings = srgb("image", open_image("image", data))
    assert not warnings
    return np.array(image)


def alpha(data: bytes) -> np.ndarray | None:
    found = open_image("image", data).alpha
    return None if found is None else np.array(found)


# --- modes and depths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, (255,) * 3),
        ("L", 31, (31,) * 3),
        ("I;16", 8000, (31,) * 3),
        ("I;16L", 8000, (31,) * 3),
        ("I;16B", 8000, (31,) * 3),
        ("I;16", 65535, (255,) * 3),
        ("I", 8000, (31,) * 3),
        ("F", 0.5, (128,) * 3),
        ("F", 31.0, (31,) * 3),
        ("RGB", RED, RED),
        ("RGBX", (*RED, 9), RED),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (100, 128, 128), (100,) * 3),
    ],
)
def test_every_mode_of_a_tiff_keeps_its_light(mode, value, expected):
    assert (colours(saved(Image.new(mode, (4, 3), value), "TIFF")) == expected).all()


def test_lab_becomes_rgb():
    image = Image.new("RGB", (4, 3), RED).convert("LAB")
    assert np.abs(colours(saved(image, "TIFF")).astype(int) - RED).max() <= 3


def test_16_bits_are_rounded_to_8():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    shown = colours(saved(Image.fromarray(values)))[..., 0]
    assert np.array_equal(shown, np.rint(values / 257))


@pytest.mark.parametrize(
    ("depth", "row", "grey"),
    [
        (1, b"\x40", 255),
        (2, b"\x10", 85),
        (4, b"\x05", 85),
        (8, b"\x00\x55", 85),
        (16, struct.pack(">HH", 0, 8000), 31),
    ],
)
def test_png_greys_of_any_depth_and_the_one_that_is_transparent(depth, row, grey):
    sample = {1: 1, 2: 1, 4: 5, 8: 85, 16: 8000}[depth]
    assert colours(raw_png(0, depth, row, (2, 1)))[0, :, 0].tolist() == [0, grey]
    data = raw_png(0, depth, row, (2, 1), {b"tRNS": struct.pack(">H", sample)})
    assert alpha(data).tolist() == [[255, 0]]
    assert colours(data)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("depth", "row", "said"),
    [
        (8, bytes((0, 0, 0, 10, 20, 30)), (10, 20, 30)),
        (16, struct.pack(">6H", 0x0A0A, 0x0A0A, 0x0A0A, 8000, 9000, 10000), (8000, 9000, 10000)),
        (16, struct.pack(">6H", 0x8080, 0x8080, 0x8080, 128, 128, 128), (128, 128, 128)),
    ],
)
def test_the_one_transparent_colour_of_an_rgb_png(depth, row, said):
    assert alpha(raw_png(2, depth, row, (2, 1), {b"tRNS": struct.pack(">3H", *said)})).tolist() == [[255, 0]]


def test_png_with_alpha_of_8_and_16_bits():
    for kind, row in (
        (4, bytes((31, 255, 31, 0))),
        (6, bytes((31, 31, 31, 255, 31, 31, 31, 0))),
    ):
        deep = np.frombuffer(row, np.uint8).astype(">u2") * 257
        for depth, data in ((8, row), (16, deep.tobytes())):
            png = raw_png(kind, depth, data, (2, 1))
            assert (colours(png) == [[[31] * 3, [255] * 3]]).all()
            assert alpha(png).tolist() == [[255, 0]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_and_their_transparency(depth):
    row, palette = {1: b"\x40", 2: b"\x10", 4: b"\x01", 8: b"\x00\x01"}[depth], bytes((0, 0, 0, *RED))
    assert (colours(raw_png(3, depth, row, (2, 1), {b"PLTE": palette})) == [[[0, 0, 0], RED]]).all()
    for shown, there in (((255,) * 3, 0), ((228, 158, 148), 127)):
        data = raw_png(3, depth, row, (2, 1), {b"PLTE": palette, b"tRNS": bytes((255, there))})
        assert alpha(data).tolist() == [[255, there]]
        assert np.abs(colours(data)[0, 1].astype(int) - shown).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_beneath_transparency_lies_white(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((31, 31, 31, 255), (0, 0, 2, 4))
    data = saved(image.convert(mode) if mode != "PA" else image, "TIFF" if mode != "PA" else "GIF")
    assert colours(data)[0, :, 0].tolist() == [31, 31, 255, 255]


def test_alpha_that_hides_nothing_is_none():
    assert alpha(saved(Image.new("RGBA", (4, 4), (*RED, 255)))) is None


@pytest.mark.parametrize("value", [-4, 70000, float("nan"), 1e9, float("inf")])
def test_values_of_which_nobody_knows_what_is_white_are_refused(value):
    data = saved(Image.new("F" if isinstance(value, float) else "I", (4, 4), value), "TIFF")
    with pytest.raises(InvalidInput, match=r"^image has values from .*; accepted: 0 to "):
        open_image("image", data)


# --- colour profiles -------------------------------------------------------------------------------------------------


def near(data: bytes, expected: tuple[int, int, int], within: int = 1) -> bool:
    return bool((np.abs(colours(data).astype(int) - expected) <= within).all())


def test_display_p3_becomes_srgb():
    flat = Image.new("RGB", (16, 16), RED)
    assert near(saved(flat, icc_profile=OUR_P3), (217, 42, 23))
    assert near(saved(flat, "WEBP", lossless=True, icc_profile=OUR_P3), (217, 42, 23))
    assert near(
        saved(flat, "JPEG", quality=100, subsampling=0, icc_profile=OUR_P3), (217, 42, 23), within=2
    )  # it lost 1


def test_adobe_rgb_becomes_srgb():
    """(200, 60, 40)/255 to the power of 2.2, through the matrices of both specifications: (231, 57, 34)."""
    assert near(
        saved(Image.new("RGB", (4, 4), RED), icc_profile=rgb_profile(ADOBE_RGB, gamma(563 / 256))), (231, 57, 34)
    )


def test_a_profile_of_greys():
    """(100/255)^1.8 is what sRGB has at 119."""
    assert near(saved(Image.new("L", (4, 4), 100), icc_profile=grey_profile(gamma(1.8))), (119,) * 3)


def test_greys_with_a_profile_of_colours_stay_grey():
    assert near(saved(Image.new("L", (4, 4), 100), icc_profile=OUR_P3), (100,) * 3)


def test_cmyk_by_its_profile_or_as_ever():
    half_black = Image.new("CMYK", (16, 16), (0, 0, 0, 128))
    assert near(saved(half_black, "JPEG", icc_profile=cmyk_profile()), (119,) * 3, within=2)  # L* 50
    assert near(saved(half_black, "JPEG"), (127,) * 3, within=2)


def test_palettes_and_transparent_images_have_profiles_too():
    flat = Image.new("RGB", (4, 4), RED)
    assert near(saved(flat.quantize(2), icc_profile=OUR_P3), (217, 42, 23))
    flat.putalpha(0)
    assert near(saved(flat, icc_profile=OUR_P3), (255,) * 3)


@pytest.mark.parametrize("profile", [b"garbage" * 50, OUR_P3[:200], grey_profile(gamma(2)), cmyk_profile()])
def test_a_profile_that_cannot_be_used_is_passed_over_with_a_word(profile):
    image, warnings = srgb("image", open_image("image", saved(Image.new("RGB", (4, 4), RED), icc_profile=profile)))
    assert warnings == ("image has a colour profile that cannot be used with its RGB colours: it was ignored",)
    assert (np.array(image) == RED).all()


def test_only_profiles_count_not_what_else_a_png_says_of_its_colours():
    chunks = {b"gAMA": struct.pack(">I", 100000), b"cICP": bytes((12, 13, 0, 1))}
    assert (colours(raw_png(2, 8, bytes(RED), (1, 1), chunks)) == RED).all()


# --- orientation and damage ------------------------------------------------------------------------------------------


def test_an_image_stands_upright():
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), RED)  # of an image that lies on its left side: to be shown at the top right
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    shown = colours(saved(image, exif=exif))
    assert shown.shape == (4, 2, 3)
    assert shown[0, 1].tolist() == list(RED)


def noise() -> bytes:
    return saved(Image.effect_noise((64, 64), 64).convert("RGB"))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG"])
def test_a_file_of_no_known_format_is_told_by_its_field_and_length(data):
    said = rf"image is not an image that can be read \({len(data)} bytes\); accepted: a PNG, JPEG or WebP file"
    with pytest.raises(InvalidInput, match=f"^{said}$"):
        open_image("image", data)


@pytest.mark.parametrize(
    "data",
    [
        noise()[:2000],
        noise().replace(b"IDAT", b"IDAX", 1),
        raw_png(2, 8, bytes(RED), (1, 1), {b"tRNS": b"\0"}),
        raw_png(2, 8, bytes(RED), (1, 1), {b"pHYs": b"\0"}),
        raw_png(2, 8, bytes(RED), (9, 9)),
        saved(Image.effect_noise((64, 64), 64), "JPEG")[:-900],
        saved(Image.effect_noise((64, 64), 64), "WEBP")[:-900],
    ],
)
def test_a_damaged_file_is_told_of_by_its_field_never_in_pillows_words(data):
    size = f"{len(data):,} bytes"
    told = (
        f"mask cannot be read: the file of {size} is damaged or truncated; accepted: a PNG, JPEG or WebP file",
        f"mask is not an image that can be read ({size}); accepted: a PNG, JPEG or WebP file",
    )
    with pytest.raises(InvalidInput) as caught:
        open_image("mask", data)
    assert str(caught.value) in told


def test_a_damaged_comment_hides_no_image():
    assert (colours(raw_png(2, 8, bytes(RED), (1, 1), {b"zTXt": b"x\0\0broken"})) == RED).all()


@pytest.mark.parametrize("size", [(8193, 8192), (10_000, 10_000), (60_000, 60_000), (1, 65_537), (65_537, 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size):
    with pytest.raises(InvalidInput, match=r"^image has .*pixels; accepted: 67108864 in all, 65536 a side$"):
        open_image("image", raw_png(0, 8, b"", size))


def test_the_most_pixels_that_are_accepted():
    assert open_image("image", saved(Image.new("1", (8192, 8192)))).colours.size == (8192, 8192)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_damaged_exif_hides_no_image(kind):
    file = io.BytesIO()
    Image.new("RGB", (9, 5), (255, 0, 0)).save(file, kind, exif=b"Exif\0\0II*\0\x08\0")
    decoded = open_image("image", file.getvalue())
    assert decoded.colours.size == (9, 5)
    assert decoded.warnings in ((), ("image has EXIF data that cannot be read: its orientation was ignored",))
