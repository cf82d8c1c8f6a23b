"""The size of an image after EXIF orientation."""

import io

import pytest
from PIL import ExifTags, Image

from hidream.errors import InvalidInput
from hidream.images.measure import oriented_size


def file(kind, orientation=None):
    exif, made = Image.Exif(), io.BytesIO()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (40, 20)).save(made, kind, exif=exif)
    return made.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 0, *range(1, 10)])
def test_the_side_that_is_up_counts(kind, orientation):
    turned = orientation in (5, 6, 7, 8)
    assert oriented_size("image", file(kind, orientation)) == ((20, 40) if turned else (40, 20))


@pytest.mark.parametrize("data", [b"", b"no image", file("PNG")[:20], file("JPEG")[:30]])
def test_what_is_no_image_is_named(data):
    with pytest.raises(InvalidInput, match=r"^mask .*accepted: a PNG, JPEG or WebP file"):
        oriented_size("mask", data)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_damaged_exif_says_nothing(kind):
    file = io.BytesIO()
    Image.new("RGB", (9, 5)).save(file, kind, exif=b"Exif\0\0II*\0\x08\0")
    assert oriented_size("image", file.getvalue()) == (9, 5)
