"""A generated image: its file, its forms in memory, and errors about paths."""

from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest
from PIL import ExifTags

from hidream.errors import InvalidInput
from hidream.library.image import Image
from hidream.outputs.encode import encode
from hidream.types import ImageFormat, Size, Timings

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture
def image() -> Image:
    return Image(PIXELS, 7, "hidream-i1-dev/x", (), Timings(1, 2, 3), nsfw=False)


def test_it_is_pixels_pil_and_an_array(image):
    assert image.size == Size(64, 48)
    assert np.array_equal(np.asarray(image.image), PIXELS)
    assert image.image is image.image
    assert np.array_equal(np.asarray(image), PIXELS)
    assert repr(image) == "<hidream.Image 64*48, seed 7, hidream-i1-dev/x>"
    assert image._repr_png_() == image.to_bytes()


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("b.JPG", "JPEG"), ("c.jpeg", "JPEG"), ("d.webp", "WEBP"), ("e.avif", "AVIF")]
)
def test_the_suffix_decides_the_format_and_the_file_names_its_seed(image, tmp_path, name, kind):
    file = tmp_path / name
    file.write_bytes(b"old")  # is replaced, as PIL does
    image.save(str(file))
    with PIL.Image.open(file) as read:
        assert (read.format, read.size) == (kind, (64, 48))
        if kind == "PNG":
            assert (read.text["seed"], read.text["version"]) == ("7", "hidream-i1-dev/x")
        else:
            comment = read.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
            assert json.loads(comment[8:])["seed"] == "7"


def test_its_bytes_are_the_servers(image, tmp_path):
    image.save(tmp_path / "a.jpg", quality=40)
    theirs = encode(PIXELS, ImageFormat.JPEG, seed=7, version="hidream-i1-dev/x", output_quality=40)
    assert (tmp_path / "a.jpg").read_bytes() == image.to_bytes("jpg", quality=40) == theirs


def test_what_cannot_be_written_is_refused(image, tmp_path):
    for name in ("a.gif", "a"):
        with pytest.raises(InvalidInput, match=r"accepted: a name that ends in .png, .jpeg, .jpg, .webp, .avif"):
            image.save(tmp_path / name)
    with pytest.raises(InvalidInput, match="quality is 90; accepted: none for PNG, which is lossless"):
        image.save(tmp_path / "a.png", quality=90)
    with pytest.raises(InvalidInput, match="quality is 0; accepted: a whole number from 1 to 100"):
        image.save(tmp_path / "a.jpg", quality=0)
    with pytest.raises(InvalidInput, match="image_format is 'gif'; accepted: png, jpeg"):
        image.to_bytes("gif")
    with pytest.raises(FileNotFoundError):
        image.save(tmp_path / "nowhere" / "a.png")
    assert not list(tmp_path.iterdir())
