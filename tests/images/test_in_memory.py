"""Images in memory come back as they were, and what is none is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from hidream.errors import InvalidInput
from hidream.images.image_file import open_image
from hidream.images.in_memory import file_bytes

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
RGBA = np.concatenate([RGB, np.full((6, 8, 1), 7, np.uint8)], 2)


def opened(value) -> Image.Image:
    return Image.open(io.BytesIO(file_bytes("image", value)))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(RGB, RGB, id="uint8"),
        pytest.param(RGBA, RGBA, id="with alpha"),
        pytest.param(RGB[:, :, 0], RGB[:, :, 0], id="grey"),
        pytest.param(RGB[:, :, :1], RGB[:, :, 0], id="one channel"),
        pytest.param(RGB[::-1, ::2], RGB[::-1, ::2], id="strided"),
        pytest.param(RGB / 255, RGB, id="float64"),
        pytest.param((RGB / 255).astype(np.float32), RGB, id="float32"),
        pytest.param(RGB[:, :, 0] > 99, (RGB[:, :, 0] > 99) * np.uint8(255), id="bool"),
        pytest.param(torch.from_numpy(RGB), RGB, id="tensor"),
        pytest.param(Image.fromarray(RGB), RGB, id="PIL"),
        pytest.param(Image.fromarray(RGBA), RGBA, id="PIL with alpha"),
        pytest.param(Image.fromarray(RGB[:, :, 0].astype(np.int32) * 99), RGB[:, :, 0].astype(np.int32) * 99, id="I"),
        pytest.param(Image.fromarray(RGB[:, :, 0] / np.float32(255)), RGB[:, :, 0] / np.float32(255), id="F"),
    ],
)
def test_pixels_come_back(value, expected):
    assert np.array_equal(np.asarray(opened(value)), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "CMYK", "YCbCr", "LAB", "RGBA", "RGBa", "I;16", "F"])
def test_every_mode_of_pillow_can_be_an_init_image(mode):
    image = Image.new(mode, (8, 6)) if mode != "P" else Image.new("RGB", (8, 6)).quantize()
    assert open_image("image", file_bytes("image", image)).colours.size == (8, 6)


def test_a_profile_stays():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(RGB)
    image.info["icc_profile"] = profile
    assert opened(image).info["icc_profile"] == profile


def test_paths_and_bytes_are_files(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(RGB).save(file)
    data = file.read_bytes()
    assert file_bytes("image", file) == file_bytes("image", str(file)) == file_bytes("image", data) == data
    assert file_bytes("image", bytearray(data)) == data


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "mask is 7; accepted: a PIL image, an array"),
        ("https://example.com/a.png", "nothing is downloaded; accepted: a PIL image"),
        ("data:image/png;base64,AAAA", "nothing is downloaded"),
        ("/nowhere/a.png", "mask is '/nowhere/a.png', which cannot be read: No such file or directory"),
        ("/", "cannot be read: Is a directory"),
        ("a\0b", "cannot be read: embedded null byte"),
        (np.zeros((3, 6, 8), np.uint8), r"mask is an array \[3, 6, 8\] of uint8; accepted"),
        (np.zeros((6, 8, 2), np.uint8), r"\[6, 8, 2\] of uint8"),
        (np.zeros((0, 8, 3), np.uint8), r"\[0, 8, 3\] of uint8"),
        (np.zeros((6, 8), np.uint16), "of uint16; accepted"),
        (np.zeros((6, 8), np.int64), "of int64; accepted"),
        (np.full((6, 8), 255.0), "mask has values from 255 to 255; accepted: floats from 0 to 1, or uint8"),
        (np.full((6, 8), np.nan), "mask has values from nan to nan"),
        (np.full((6, 8), -0.5), "mask has values from -0.5 to -0.5"),
        (Image.new("RGB", (0, 5)), "mask is a PIL image of mode RGB and 0"),
    ],
)
def test_what_is_no_image_is_refused(value, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        file_bytes("mask", value)
    assert caught.value.field == "mask"
