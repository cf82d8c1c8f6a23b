"""Each format preserves the image, with its seed and version."""

import io
import json
import os

import numpy as np
import pytest
from PIL import ExifTags, Image

from hidream.file_names import MEDIA_TYPES
from hidream.outputs.encode import encode
from hidream.types import FORMATS, LOSSY, ImageFormat

VERSION = "hidream-i1-dev/3c82d124b51e/exact/cpu-float32/0.1.0"


def gradient(height=48, width=64):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 4, columns * 3, rows + columns], axis=-1).astype(np.uint8)


def drawing(side=256):
    """Shaded ground with soft blots, as a model draws them: without noise or sharp edges."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side] / side
    image = np.stack([rows, columns, 1 - rows], axis=-1) * 160
    for _ in range(12):
        y, x, radius = rng.random(3) * (1, 1, 0.2)
        share = 1 / (1 + np.exp((np.hypot(rows - y, columns - x) - radius) * 60))
        image += share[..., None] * (rng.random(3) * 255 - image)
    return image.round().astype(np.uint8)


def metadata(image):
    """Read back what the file says of itself."""
    if image.format == "PNG":
        return image.text
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    return json.loads(comment.removeprefix(b"ASCII\0\0\0"))


@pytest.mark.parametrize("output_format", ImageFormat)
def test_seed_and_version_are_in_the_file(output_format):
    image = Image.open(io.BytesIO(encode(gradient(), output_format, seed=9_999_999_999, version=VERSION)))
    assert image.format == output_format.upper()
    assert Image.MIME[image.format] == MEDIA_TYPES[output_format]
    assert metadata(image) == {"Software": "hidream", "seed": "9999999999", "version": VERSION}
    assert image.format == "PNG" or image.getexif()[ExifTags.Base.Software] == "hidream"


@pytest.mark.parametrize(("output_format", "tolerance"), [("png", 0), ("jpeg", 8), ("webp", 24), ("avif", 16)])
def test_the_image_comes_back(output_format, tolerance):
    pixels = gradient()
    file = io.BytesIO(encode(pixels, ImageFormat(output_format), seed=1, version=VERSION))
    back = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert back.shape == pixels.shape
    assert abs(back - pixels).max() <= tolerance


@pytest.mark.parametrize("output_format", ImageFormat)
def test_the_same_image_is_the_same_bytes(output_format):
    first, second = (encode(gradient(), output_format, seed=1, version=VERSION) for _ in range(2))
    assert first == second


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot be told to use one core")
@pytest.mark.parametrize("output_format", ImageFormat)
def test_the_bytes_do_not_depend_on_the_number_of_cores(output_format):
    pixels, cores = drawing(1024), os.sched_getaffinity(0)
    many = encode(pixels, output_format, seed=1, version=VERSION)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert encode(pixels, output_format, seed=1, version=VERSION) == many
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize("output_format", ImageFormat)
def test_how_the_pixels_lie_in_memory_does_not_matter(output_format):
    pixels = drawing(64)
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))  # as the model's are
    first, second = (
        encode(each, output_format, seed=1, version=VERSION) for each in (pixels, np.moveaxis(planes, 0, -1))
    )
    assert first == second


@pytest.mark.parametrize("output_format", LOSSY)
def test_quality_is_bought_with_bytes(output_format):
    pixels = drawing()

    def encoded(quality):
        return encode(pixels, output_format, seed=1, version=VERSION, output_quality=quality)

    def error(data):
        return ((np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float) - pixels) ** 2).mean()

    low, middle, high = (encoded(quality) for quality in (1, 50, 100))
    assert len(low) < len(middle) < len(high)
    assert error(low) > error(middle) > error(high)
    assert encoded(None) == encoded(FORMATS[output_format].quality)


def test_png_loses_nothing_at_any_quality():
    first, second = (
        encode(drawing(64), ImageFormat.PNG, seed=1, version=VERSION, output_quality=quality) for quality in (None, 1)
    )
    assert first == second


def test_a_drawing_is_smaller_as_png_than_by_the_quickest_level_of_zlib():
    pixels, quickest = drawing(), io.BytesIO()
    Image.fromarray(pixels).save(quickest, "PNG", compress_level=1)
    ours = encode(pixels, ImageFormat.PNG, seed=1, version=VERSION)
    assert len(ours) < 0.95 * len(quickest.getvalue())


WORKFLOW = {"prompt": '{"1": {}}', "workflow": '{"nodes": []}'}


@pytest.mark.parametrize("kind", list(ImageFormat))
def test_comfyuis_workflow_is_where_comfyui_has_it(kind):
    data = encode(gradient(), kind, seed=7, version=VERSION, workflow=WORKFLOW)
    image = Image.open(io.BytesIO(data))
    assert metadata(image)["seed"] == "7"
    if kind is ImageFormat.PNG:
        assert {name: image.text[name] for name in WORKFLOW} == WORKFLOW
    else:
        exif = image.getexif()
        assert exif[0x0110] == f"prompt:{WORKFLOW['prompt']}"
        assert exif[0x010F] == f"workflow:{WORKFLOW['workflow']}"


@pytest.mark.parametrize("kind", list(ImageFormat))
def test_what_is_not_known_is_left_out(kind):
    image = Image.open(io.BytesIO(encode(gradient(), kind, seed=None, version=None)))
    assert dict(metadata(image)) == {"Software": "hidream"}
